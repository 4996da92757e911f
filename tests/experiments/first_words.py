# SPDX-License-Identifier: Apache-2.0
"""Does rounding decide whether the first words of a trained prompt count as familiar?

    python -m tests.experiments.first_words --adapter FOLDER

A SLIM for the demo's base that was trained in bfloat16, without `--adapter` the demo's own, reads trained test
questions in float32 and in bfloat16. The script prints, in %, the share of each of the first tokens that bypasses
LoRA, and that of all tokens. Nothing is trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import slim_core
from slim_core.demo.forms import asked_in_form
from slim_core.demo.trial import load
from slim_core.paths import DEMO


FIRST = 6  # tokens: the begin token, the opening of the turn, and four of the frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=20, help="of each trained task")
    parser.add_argument("--adapter", type=Path, default=DEMO / "slim", help="folder of the SLIM adapter")
    args = parser.parse_args()

    model, tokenizer = load(DEMO / "base", args.adapter)
    _, chats = asked_in_form("downstream", "as trained", "test", args.questions)
    print(f"| precision | {' | '.join(f'token {n + 1}' for n in range(FIRST))} | all |\n|{' --- |' * (FIRST + 2)}")
    for precision in (torch.float32, torch.bfloat16):
        shares = []
        for chat in chats:
            ids = tokenizer.apply_chat_template(
                list(chat), add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            rounded = torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16)
            with torch.inference_mode(), rounded, slim_core.trace_routing(model) as trace:
                model(**ids)
            identity = trace.row(0).identity.mean(0)
            shares.append(torch.cat([identity[:FIRST], identity.mean()[None]]))
        cells = (100 * torch.stack(shares).mean(0)).tolist()
        print(
            f"| {str(precision).removeprefix('torch.')} | {' | '.join(f'{cell:.1f}' for cell in cells)} |", flush=True
        )


if __name__ == "__main__":
    main()
