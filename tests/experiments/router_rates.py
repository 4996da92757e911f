# SPDX-License-Identifier: Apache-2.0
"""Does SLIM's router learn better at a learning rate of its own, as DISeL's gate does?

The demo's SLIM is trained as it ships, except that the router's rate is a multiple of the adapter's. The script prints
right answers on the validation questions, in %. There is no weight decay in any row.

    python -m tests.experiments.router_rates --work FOLDER --times 0.2 1 5
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from slim_core import baselines
from slim_core.demo.trial import TrialPlan, TrialTask, run_trial, write_data
from slim_core.paths import DEMO


ROUTER = ("slim_router", "slim_router_bias")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the data and the adapters")
    parser.add_argument("--times", type=float, nargs="+", default=[0.2, 1.0, 5.0], help="multiples of the rate")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate of the adapter")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    args = parser.parse_args()

    plan, data = TrialPlan(), args.work / "downstream.jsonl"
    write_data(data, plan)
    usual = baselines.METHODS["slim"]
    print(f"{'times':>6}{'seed':>6}{'downstream':>12}{'general':>9}", flush=True)
    for seed in args.seeds:
        for times in args.times:
            baselines.METHODS["slim"] = replace(usual, rates=lambda config, times=times: dict.fromkeys(ROUTER, times))
            folder = args.work / f"router-{times:g}-{seed}"
            trial = run_trial(TrialTask("slim", args.rate, seed, DEMO / "base", data, folder), plan)
            if trial is None:
                return
            print(f"{times:>6g}{seed:>6}{100 * trial.downstream:>12.1f}{100 * trial.general:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
