# SPDX-License-Identifier: Apache-2.0
"""Running a visitor's evaluation, and what the page shows of it: progress, scores, and the plane."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr

from ...evaluation.metrics import SOLVES, comparison_sentence
from ...evaluation.report.page import MORE, notes
from ...evaluation.results import Evaluation, Participant
from ...evaluation.statistics import Score
from ...evaluation.summary import BASE, Group
from ...evaluation.tasks import Task
from ...inference import EngineError, GateSetting
from ...inference.types import Variant
from ...many import Respondent, gate_name
from ..backend import Backend, SolvingJob
from ..limits import LimitError
from ..state.columns import columns
from ..state.evaluation_run import EvaluationRun, VisitorEvaluation
from ..state.session import Session
from ..words import base_name
from . import plane
from .background import BACKGROUND, FAILED, Threads, take_place


OTHER_BASE = "The base model was changed, so the rest was not asked."
KINDS = {"downstream": "What was trained", "general": "What should not be forgotten"}
SCORINGS = {
    "letters": "Answered with a letter: right ones in %",
    "likelihood": "The most likely option: right ones in %",
    "written": "Written answers: right ones in %",
    "rules": "Answers whose form was asked for: right ones in %",
    "captured": "Open questions answered in the trained form, in %: lower is better",
}
EXPLAINED = (
    "In brackets are Wilson's 95 % intervals, of a mean one that is made from its tasks': about nineteen of twenty "
    "such intervals contain the score that all questions of this kind would give, so the fewer questions are asked, "
    "the wider they are."
)
log = logging.getLogger(__name__)


class Evaluations:
    """Starts evaluations, limited so that most places for prompts are left to visitors who ask something.

    Args:
        backend: where the model is.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._threads = Threads(backend.places // 4, "An evaluation", "evaluations", "running")

    def start(self, session: Session, evaluation: VisitorEvaluation, tasks: Sequence[Task]) -> EvaluationRun:
        """Evaluate the variants in the visitor's columns.

        Args:
            session: the visitor's: their columns and gates.
            evaluation: where the run is kept.
            tasks: what is solved.

        Raises:
            LimitError: if the visitor's last evaluation, or too many of others, are running.
        """
        backend = self._backend
        loaded = columns(session, backend)
        info = backend.engine.info
        run = EvaluationRun(
            base=base_name(info),
            own_variants={name: variant for name, variant in loaded.items() if name in session.own_variants},
            info=replace(info, name=base_name(info)),
            participants=_participants(session, backend),
            tasks=tuple(tasks),
        )
        self._threads.start(evaluation, run, partial(self._follow, generation=backend.generation))
        return run

    def _follow(self, run: EvaluationRun, generation: int) -> None:
        respondents = tuple(participant.respondent for participant in run.participants)
        for unit in run.units:
            if run.stopping or not take_place(self._backend, run):
                return
            try:
                if self._backend.generation != generation:
                    raise LimitError(OTHER_BASE)
                # Not attributed to the wrong adapter, if one is gone.
                stack, adapters = self._backend.visitor_adapters.keep(run.as_session())
                with stack:
                    samples = self._backend.solve(SolvingJob(unit, respondents, tuple(adapters.items())))
            except (LimitError, EngineError) as error:
                run.note = str(error)
                return
            except gr.Error as error:
                # ZeroGPU says why there is no GPU.
                run.note = re.sub(r"<[^>]*>", "", str(error.message))
                return
            except Exception:
                log.exception("the model failed")
                run.note = FAILED
                return
            finally:
                self._backend.leave(BACKGROUND)
            run.samples[unit.task.name] += samples


def _participants(session: Session, backend: Backend) -> tuple[Participant, ...]:
    """Who answers in the columns, by names that people know and each once."""
    participants: list[Participant] = []
    taken: set[str] = set()
    for column, variant in columns(session, backend).items():
        gate = session.gate(variant)
        name = BASE if variant.kind == "base" else _name(variant, gate, column, taken)
        taken.add(name)
        adapter = (
            backend.visitor_adapters.adapter(session.owner, variant.name) if column in session.own_variants else None
        )
        source = base_name(backend.engine.info) if variant.kind == "base" else variant.label
        sha256 = "" if adapter is None else adapter.sha256
        participants.append(Participant(Respondent(name, variant, gate), source, sha256))
    return tuple(participants)


def _name(variant: Variant, gate: GateSetting, column: str, taken: set[str]) -> str:
    name = f"{variant.label}{gate_name(gate)}"
    return name if name not in taken and name.lower() != BASE else f"{name} ({column})"


# ---- for the page


def tab_view(evaluation: VisitorEvaluation) -> dict[str, Any] | None:
    """Progress and results; None before the first run."""
    run = evaluation.run
    if run is None:
        return None
    results = run.evaluation()
    return {
        "line": _line(run),
        "done": run.done,
        "total": run.total,
        "running": not run.ended.is_set(),
        "note": run.note or _unsolved(run),
        "groups": [] if results is None else [_group(run, results, group) for group in results.groups],
        "explained": EXPLAINED,
    }


def progress(evaluation: VisitorEvaluation, before: dict[str, Any] | None) -> dict[str, Any] | None:
    """The progress alone, with the results that were shown before."""
    run = evaluation.run
    if run is None or before is None:
        return tab_view(evaluation)
    return before | {"line": _line(run), "done": run.done, "running": not run.ended.is_set()}


def status(run: EvaluationRun) -> str:
    """What is read aloud, at the beginning and at the end."""
    if not run.ended.is_set():
        return f"Evaluation: {run.total} questions to solve."
    return f"Evaluation: {_line(run)}"


def _line(run: EvaluationRun) -> str:
    done, total = run.done, run.total
    counted = f"{done} of {total} questions"
    if run.ended.is_set():
        return f"{counted} were asked." if done < total or total == 1 else f"All {total} questions were asked."
    if run.stopping:
        return f"{counted} were asked; stopping when those that are being answered are done."
    if run.crowded:
        return f"{counted} were asked; all places for prompts are taken; it continues when one is free."
    return f"{counted} were asked."


def _unsolved(run: EvaluationRun) -> str:
    """A sentence for each task of which no question could be solved, so that it has no scores."""
    errors = {task.title: [s.get("error") for s in list(run.samples[task.name])] for task in run.tasks}
    return " ".join(
        f"{title}: no question could be solved: {reasons[0]}"
        for title, reasons in errors.items()
        if reasons and all(reasons)
    )


def _group(run: EvaluationRun, results: Evaluation, group: Group) -> dict[str, Any]:
    labels = results.labels
    verb = MORE.get(group.scoring, SOLVES)
    return {
        "title": SCORINGS[group.scoring],
        "labels": list(labels.values()),
        "kinds": [
            {
                "title": KINDS[kind],
                "rows": [
                    {"task": task.title, "n": task.n, "scores": [_cell(task.scores[c]) for c in labels]}
                    for task in group.tasks
                    if task.kind == kind
                ],
                "mean": [_cell(standing.mean) for standing in summary.standings] if len(summary.tasks) > 1 else [],
                "compared": [
                    comparison_sentence(c, labels[c.first], labels[c.second], verb) for c in summary.comparisons
                ],
            }
            for kind, summary in group.kinds.items()
        ],
        "notes": list(notes(group)),
        "plane": _plane(run, group, labels),
    }


def _cell(value: Score) -> list[str]:
    """A score, and its interval. Tenths of a percent mean nothing with so few questions."""
    score, low, high = (f"{100 * share:.0f}" for share in value)
    return [score, f"({low}–{high})"]


def _plane(run: EvaluationRun, group: Group, labels: dict[str, str]) -> dict[str, Any] | None:
    """The plane, if both kinds were asked in the same way."""
    if not {"downstream", "general"} <= group.kinds.keys():
        return None
    kept = {standing.variant: standing.mean for standing in group.kinds["general"].standings}
    learned = {standing.variant: standing.mean for standing in group.kinds["downstream"].standings}
    return plane.measured(
        {
            labels[name]: plane.Point(participant.respondent.variant.kind, "", (*kept[name],), (*learned[name],))
            for name, participant in zip(labels, run.participants, strict=True)
        }
    )
