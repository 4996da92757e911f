# SPDX-License-Identifier: Apache-2.0
"""Does training data in several forms give back what a gate costs on questions in other forms?

The demo's SLIM is trained anew: half of the questions are in the trained form, as in the demo, and the others in a
paraphrase, with typos or after an instruction. No training example has the other forms of `slim_core.demo.forms`.

    python -m tests.experiments.several_forms --work FOLDER

The script prints, in %, right answers to test questions in every form with the gate as trained and open, and the share
of the question that bypasses LoRA, for the demo's SLIM and for the new one. A training that is finished in the folder
is not repeated; it takes about a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import slim_core
from slim_core.demo.example import Example
from slim_core.demo.forms import FORMS, TRAINED_FORMS, asked_in_form
from slim_core.demo.identity import identity_shares
from slim_core.demo.lessons import lessons
from slim_core.demo.measure import mark, reply
from slim_core.demo.trial import TrialPlan, TrialTask, load, run_trial
from slim_core.paths import DEMO


ADDED = ("paraphrase of the frame", "typos", "after an instruction")
AS_TRAINED = 0.5  # share of the questions that keep the demo's form


def reworded(lesson: list[dict[str, Any]], rng: Random) -> list[dict[str, Any]]:
    """The conversation with its last question in one of the forms."""
    *before, question, answer = lesson
    if rng.random() < AS_TRAINED:
        return lesson
    example = Example("", question["content"], answer["content"])
    (message,) = TRAINED_FORMS[rng.choice(ADDED)](example, rng)
    return [*before, message, answer]


def write_lessons(path: Path, plan: TrialPlan) -> None:
    """The demo's training conversations, in several forms."""
    rng = Random("several forms")
    drawn = lessons(plan.examples, plan.earlier, plan.general_share)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"messages": reworded(lesson, rng)}) + "\n" for lesson in drawn))


def answered(adapter: Path, questions: int) -> dict[tuple[str, str], tuple[float, float, float]]:
    """By kind and form: right answers with the gate as trained and open, and the share past LoRA, from 0 to 1."""
    model, tokenizer = load(DEMO / "base", adapter)
    trained = json.loads((adapter / "adapter_config.json").read_text())["yield_strength"]
    found = {}
    for kind, (_, forms) in FORMS.items():
        for form in forms:
            examples, chats = asked_in_form(kind, form, "test", questions)
            scores = []
            for strength in (trained, 0):
                slim_core.set_gate(model, strength=strength)
                scores.append(fmean(map(int, mark(examples, reply(model, tokenizer, chats)))))
            slim_core.set_gate(model, strength=trained)
            found[kind, form] = (*scores, identity_shares(model, tokenizer, chats).mean().item())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the data and the adapter")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--steps", type=int, default=TrialPlan().steps)
    parser.add_argument("--questions", type=int, default=200, help="of each task, in each form")
    args = parser.parse_args()

    plan = TrialPlan(steps=args.steps)
    data = args.work / "several-forms.jsonl"
    if not data.is_file():
        write_lessons(data, plan)
    task = TrialTask("slim", args.rate, args.seed, DEMO / "base", data, args.work / f"several-forms-{args.seed}")
    if run_trial(task, plan) is None:
        raise SystemExit(130)
    rows = [answered(adapter, args.questions) for adapter in (DEMO / "slim", task.folder)]
    print("| form | one form: SLIM | open | past LoRA | several forms: SLIM | open | past LoRA |")
    print("| --- |" + " ---: |" * 6)
    for kind, form in rows[0]:
        cells = (f"{100 * share:.1f}" for row in rows for share in row[kind, form])
        print(f"| {form if kind == 'downstream' else f'general, {form}'} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
