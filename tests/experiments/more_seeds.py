# SPDX-License-Identifier: Apache-2.0
"""Does what the demo's results show hold from other seeds?

LoRA and SLIM are trained as in the demo, at the rates that were chosen there, from other seeds, and each seed answers
everything that `demo verify` asks. The script prints the means over these and the seed that ships, with the least and
the most: right answers of LoRA (also scaled down) and SLIM (also at other strengths), the differences, the shares past
LoRA, and the forms. What is finished in the folder is not repeated; a seed takes about half an hour on one core.

    python -m tests.experiments.more_seeds --work FOLDER --seeds 43 44 45 46
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slim_core.demo.install import install_adapter
from slim_core.demo.report import LABELS, Table, differences_over_seeds, over_seeds, spread
from slim_core.demo.trial import TrialPlan, TrialTask, run_trial, write_data
from slim_core.demo.verify import KINDS, OPEN, VARIANTS, verify
from slim_core.demo.words import task_words
from slim_core.paths import DEMO


TRAINED = ("lora", "slim")
# In the order of the tables; the base is the same for all seeds.
NAMES = ("lora", "lora x 0.75", "lora x 0.5", "lora x 0.25", "slim", *(f"slim at {s}" for s in ("2", "1", "0.5")))
PAIRS = tuple(("slim", name) for name in (*NAMES[:4], OPEN))


def measured(seed: int, work: Path) -> dict[str, Any]:
    """The results of a seed, in the shape of `results.json`; trains first if that is not done."""
    file = work / f"results-{seed}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    plan, data, stage = TrialPlan(), work / "downstream.jsonl", work / f"stage-{seed}"
    rates = json.loads((DEMO / "build.json").read_text(encoding="utf-8"))["chosen"]
    if not data.is_file():
        write_data(data, plan)
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(DEMO / "base", stage / "base")
    for method in TRAINED:
        rate = rates[method]["rate"]
        task = TrialTask(method, rate, seed, DEMO / "base", data, work / f"{method}-{rate:g}-{seed}")
        if run_trial(task, plan) is None:
            raise SystemExit(130)
        # Rounded like those that ship.
        install_adapter(task.folder, stage / method)
    results = verify(stage, report=lambda name: print(f"seed {seed}: {name}", flush=True))
    file.write_text(json.dumps(results), encoding="utf-8")
    return results


def shares(by_seed: Mapping[int, Mapping[str, Any]]) -> Table:
    """What bypasses LoRA, and what is the base's by construction, by task."""
    identity = [results["identity"] for results in by_seed.values()]
    table = Table(
        "Share of a prompt that bypasses LoRA, and answers that are the base's by construction, mean (range) over "
        f"{len(identity)} seeds in %; the least area under the ROC curve is {min(i['auc'] for i in identity):.4f}",
        ("task", "past LoRA", "by construction"),
    )
    for task in identity[0]["tasks"]:
        table.add(task_words(task), *(spread([i[what][task] for i in identity]) for what in ("tasks", "exact")))
    return table


def forms(by_seed: Mapping[int, Mapping[str, Any]], kind: str) -> Table:
    """Right answers in other forms, and what bypasses LoRA."""
    rows = [results["forms"][kind] for results in by_seed.values()]
    table = Table(
        f"{kind.capitalize()} tasks in other forms, right answers, mean (range) over {len(rows)} seeds in %",
        ("form", *(LABELS[name] for name in VARIANTS), "past LoRA"),
    )
    for form in rows[0]:
        columns = [[row[form][name][0] for row in rows] for name in VARIANTS[1:]]
        base = f"{100 * rows[0][form]['base'][0]:.1f}"
        table.add(form, base, *map(spread, columns), spread([row[form]["identity"] for row in rows]))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the data, the adapters and the answers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[43, 44, 45, 46])
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    build = json.loads((DEMO / "build.json").read_text(encoding="utf-8"))
    by_seed = {build["chosen"]["slim"]["seed"]: json.loads((DEMO / "results.json").read_text(encoding="utf-8"))}
    by_seed |= {seed: measured(seed, args.work) for seed in args.seeds}
    marks = {name: {str(seed): results["marks"][name] for seed, results in by_seed.items()} for name in (*NAMES, OPEN)}
    tables = [over_seeds(marks), differences_over_seeds(marks, PAIRS), shares(by_seed)]
    for table in (*tables, *(forms(by_seed, kind) for kind in reversed(KINDS))):
        print(table.markdown(), end="\n\n")


if __name__ == "__main__":
    main()
