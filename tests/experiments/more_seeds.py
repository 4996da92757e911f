# SPDX-License-Identifier: Apache-2.0
"""Does what the demo's three seeds show hold for more of them?

LoRA and SLIM are trained as in the demo, at the rates that were chosen there, from other seeds. The script prints
their right answers to the demo's test questions together with those of the demo's own seeds, and the differences of
the means over all seeds. A training or measurement that is finished in the folder is not repeated; a seed takes about
a quarter of an hour on one core.

    python -m tests.experiments.more_seeds --work FOLDER --seeds 45 46
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import slim_core
from slim_core.demo.install import install_adapter
from slim_core.demo.measure import measure
from slim_core.demo.report import differences_over_seeds, over_seeds
from slim_core.demo.seeds import marks_by_seed
from slim_core.demo.trial import TrialPlan, TrialTask, load, run_trial, write_data
from slim_core.demo.verify import OPEN
from slim_core.paths import DEMO


# What is measured, by the method that is trained for it, with the strength of its gate.
MEASURED: dict[str, dict[str, float | None]] = {"lora": {"lora": None}, "slim": {"slim": None, OPEN: 0.0}}
PAIRS = (("slim", "lora"), ("slim", OPEN))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the data, the adapters and the answers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[45, 46])
    parser.add_argument("--questions", type=int, default=600, help="of each task; other numbers are for trying it out")
    args = parser.parse_args()

    build = json.loads((DEMO / "build.json").read_text(encoding="utf-8"))
    results = json.loads((DEMO / "results.json").read_text(encoding="utf-8"))
    stored, plan, data = marks_by_seed(results, build), TrialPlan(), args.work / "downstream.jsonl"
    by_seed = {name: dict(stored[name]) for ways in MEASURED.values() for name in ways}
    args.work.mkdir(parents=True, exist_ok=True)
    if not data.is_file():
        write_data(data, plan)
    for seed in args.seeds:
        for method, ways in MEASURED.items():
            rate = build["chosen"][method]["rate"]
            task = TrialTask(method, rate, seed, DEMO / "base", data, args.work / f"{method}-{rate:g}-{seed}")
            if run_trial(task, plan) is None:
                raise SystemExit(130)
            for name, strength in ways.items():
                file = task.folder.with_name(f"{task.folder.name}-{name.replace(' ', '-')}-{args.questions}.json")
                if not file.is_file():
                    # Rounded like those that ship.
                    rounded = args.work / f"rounded-{task.folder.name}"
                    shutil.rmtree(rounded, ignore_errors=True)
                    install_adapter(task.folder, rounded)
                    model, tokenizer = load(DEMO / "base", rounded)
                    if strength is not None:
                        slim_core.set_gate(model, strength=strength)
                    file.write_text(json.dumps(measure(model, tokenizer, "test", args.questions)))
                by_seed[name][str(seed)] = json.loads(file.read_text())
    print(over_seeds(by_seed).markdown())
    print(differences_over_seeds(by_seed, PAIRS).markdown())


if __name__ == "__main__":
    main()
