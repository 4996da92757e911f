# SPDX-License-Identifier: Apache-2.0
"""How much of what a gate costs on other forms do a lower strength and a higher quantile give back, and for what?

The demo's SLIM answers trained questions in every form of `slim_core.demo.forms`, and general questions alone and
right after a trained turn, with its gate at several strengths and quantiles. Nothing is trained. In %:

    python -m tests.experiments.gate_settings --settings 4:0.99 4:0.999 2:0.99 1:0.99 0.5:0.99 0:0.99
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

from slim_core import set_gate
from slim_core.demo.forms import FORMS, asked_in_form
from slim_core.demo.measure import mark, reply
from slim_core.demo.trial import load
from slim_core.paths import DEMO


SETTINGS = ("4:0.99", "4:0.999", "2:0.99", "2:0.999", "1:0.99", "0.5:0.99", "0:0.99")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help="STRENGTH:QUANTILE of the gate")
    parser.add_argument("--questions", type=int, default=200, help="of each task, in each form")
    parser.add_argument("--demo", type=Path, default=DEMO)
    args = parser.parse_args()

    asked = {
        form: asked_in_form(kind, form, "test", args.questions) for kind, (_, forms) in FORMS.items() for form in forms
    }
    model, tokenizer = load(args.demo / "base", args.demo / "slim")
    print(f"| strength | quantile | {' | '.join(asked)} |\n| ---: | ---: |{' ---: |' * len(asked)}", flush=True)
    for setting in args.settings:
        strength, quantile = map(float, setting.split(":"))
        set_gate(model, strength=strength, quantile=quantile)
        marks = [mark(examples, reply(model, tokenizer, chats)) for examples, chats in asked.values()]
        scores = [fmean(map(int, right)) for right in marks]
        print(f"| {strength:g} | {quantile:g} | {' | '.join(f'{100 * score:.1f}' for score in scores)} |", flush=True)


if __name__ == "__main__":
    main()
