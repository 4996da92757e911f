# SPDX-License-Identifier: Apache-2.0
"""What do single choices of this SLIM do? The demo's SLIM is trained with one of them changed, and measured.

    python -m tests.experiments.slim_choices --work FOLDER --only "as it is" "each gate by its own router"

The script prints, in %: right answers to validation questions of the trained and of the general tasks; right answers
to trained questions as a third turn and to general ones right after a trained turn, each with the share of the
question that bypasses LoRA; and how many general answers are the base's by construction. What is finished in the
folder is not done again. A row takes about a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from unittest.mock import patch

from torch import Tensor

from slim_core.demo.forms import asked_in_form
from slim_core.demo.identity import exact_answers, identity_shares
from slim_core.demo.measure import mark, reply
from slim_core.demo.trial import TrialPlan, TrialTask, load, run_trial, write_data
from slim_core.method import adapter_router, contexts
from slim_core.method.adapter_router import AdapterRouter
from slim_core.method.routing import ClusterTables, Router, Routing, nearest_cluster, normalise, route
from slim_core.method.sliding_clusters import entry
from slim_core.paths import DEMO


TABLES = AdapterRouter.tables
ROUTER = ("slim_router", "slim_router_bias", "slim_router_down", "slim_router_up")


def _plain_tables(self: AdapterRouter, training: bool) -> tuple[ClusterTables, Tensor | None, Router]:
    """As `AdapterRouter.tables`, with a router that normalises nothing."""
    tables, reference, _ = TABLES(self, training)
    weights = (entry(self._weights[name], self.name) for name in ROUTER)
    return tables, reference, Router(*weights)


def _by_cluster_of_context(
    x: Tensor, tables: ClusterTables, router: Router, *, context: Tensor, **rest: Any
) -> Routing:
    """As `route`, with tokens normalised by the cluster of their context."""
    z = normalise(x, tables, nearest_cluster(context, tables))
    return route(z, tables, router, context=context, **rest)


@contextmanager
def _router_sees(function: Callable[..., Routing]) -> Iterator[None]:
    with patch.object(AdapterRouter, "tables", _plain_tables), patch.object(adapter_router, "route", function):
        yield


@contextmanager
def _one_reference() -> Iterator[None]:
    # All lengths are then in the first of the buckets that a router keeps.
    with patch.object(contexts, "LENGTH_BUCKETS", 1):
        yield


@contextmanager
def _nothing() -> Iterator[None]:
    yield


class Choice(NamedTuple):
    """A choice that is made in another way.

    Attributes:
        slim: changed fields of `SlimConfig`.
        plan: changed fields of `TrialPlan`.
        within: a context in which it is trained and measured.
    """

    slim: dict[str, Any] = {}
    plan: dict[str, Any] = {}
    within: Callable[[], Any] = _nothing


CHOICES = {
    "as it is": Choice(),
    "each gate by its own router": Choice({"carry_up": False}),
    "gate open from the first token": Choice({"context_warmup": 0}),
    "one reference for all lengths": Choice(within=_one_reference),
    "no floor of the variance": Choice({"variance_floor": 0.0}),
    "floor of 0.03": Choice({"variance_floor": 0.03}),
    "floor of 0.3": Choice({"variance_floor": 0.3}),
    "router sees x": Choice(within=partial(_router_sees, route)),
    "router sees x by the cluster of its context": Choice(within=partial(_router_sees, _by_cluster_of_context)),
    "trained on first turns alone": Choice(plan={"earlier": (0,)}),
}
FORMS = (("downstream", "third turn, after two general ones"), ("general", "second turn, after a trained one"))


def measured(choice: Choice, plan: TrialPlan, task: TrialTask, questions: int) -> list[float]:
    """The numbers of a row, from 0 to 1; trains first if that is not done."""
    with choice.within():
        trial = run_trial(task, plan)
        if trial is None:
            raise SystemExit(130)
        model, tokenizer = load(task.base, task.folder)
        numbers = [trial.downstream, trial.general]
        for kind, form in FORMS:
            examples, chats = asked_in_form(kind, form, "validation", questions)
            numbers.append(fmean(map(int, mark(examples, reply(model, tokenizer, chats)))))
            numbers.append(identity_shares(model, tokenizer, chats).mean().item())
        _, chats = asked_in_form("general", "alone", "validation", questions)
        return [*numbers, fmean(exact_answers(model, tokenizer, chats))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the data and the adapters")
    parser.add_argument("--only", nargs="+", choices=CHOICES, default=list(CHOICES), metavar="CHOICE")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--slim", type=json.loads, default={}, help="changes to SlimConfig for all choices, as JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--steps", type=int, default=TrialPlan().steps)
    parser.add_argument("--questions", type=int, default=100, help="of each task, in the last five columns")
    args = parser.parse_args()

    columns = ("downstream", "general", "3rd turn", "past LoRA", "2nd turn", "past LoRA", "exact")
    print(f"{'choice':<45}{'seed':>6}" + "".join(f"{name:>12}" for name in columns), flush=True)
    for seed in args.seeds:
        for name in args.only:
            choice = CHOICES[name]
            usual = TrialPlan(steps=args.steps)
            plan = replace(usual, slim=usual.slim | args.slim | choice.slim, **choice.plan)
            data = args.work / f"earlier-{'-'.join(map(str, plan.earlier))}.jsonl"
            if not data.is_file():
                write_data(data, plan)
            folder = args.work / f"{name.replace(' ', '-')}-{seed}"
            task = TrialTask("slim", args.rate, seed, DEMO / "base", data, folder)
            numbers = measured(choice, plan, task, args.questions)
            print(f"{name:<45}{seed:>6}" + "".join(f"{100 * number:>12.1f}" for number in numbers), flush=True)


if __name__ == "__main__":
    main()
