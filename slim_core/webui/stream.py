# SPDX-License-Identifier: Apache-2.0
"""Answers on their way: a thread follows the model, and the page looks a few times a second."""

from __future__ import annotations

import contextvars
import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import gradio as gr

from ..inference import EngineError, Stops
from ..inference.types import Drift, Row, RowStep, Sampling, Step
from .backend import Backend, Job
from .limits import LimitError, check_room
from .session import Answer, Run, Session, Turn


# A page that gets every token spends its time drawing: 12 times a second looks the same and costs a fraction.
INTERVAL = 1 / 12
ROUTING_INTERVAL = 0.3
# How long a new prompt waits for answers that were told to stop.
STOP_PATIENCE = 5.0
log = logging.getLogger(__name__)


def start(
    backend: Backend, session: Session, turn: Turn, names: Sequence[str], sampling: Sampling, batched: bool
) -> Run:
    """Let some variants answer a turn of the session.

    Args:
        backend: where the model is.
        session: the visitor's; it is written while the answers come.
        turn: already part of the session.
        names: the variants that answer.
        sampling: how tokens are chosen.
        batched: all at once, or one after another.

    Raises:
        LimitError: if answers are still being written or there is no room.
    """
    base = backend.base.name
    rows = tuple(Row(name, session.messages(name, turn), routing=name != base) for name in names)
    check_room(max(backend.engine.count_tokens(row.messages) for row in rows), backend.engine.info.context_length)
    known = turn.answers.get(base)
    job = Job(
        rows=rows,
        sampling=sampling,
        batched=batched,
        drift=tuple(v.name for v in backend.adapters),
        base_messages=session.messages(base, turn),
        base_ids=known.token_ids if known and base not in names else (),
    )
    run = Run(Stops(len(rows)), tuple(names))
    take(session, run)
    for name in names:
        turn.answers[name] = Answer(RowStep(name), sampling)
        session.packers.pop((turn.id, name), None)
    if base in names:
        turn.drift = None
    # A lent GPU is booked on the visitor, who is known by the context of this thread.
    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(_follow, backend, session, turn, job, run), daemon=True).start()
    return run


def take(session: Session, run: Run) -> None:
    """Take the session, waiting for a run that was told to stop."""
    if session.begin(run):
        return
    current = session.run
    if current is not None and current.stopping and current.ended.wait(STOP_PATIENCE) and session.begin(run):
        return
    raise LimitError("Answers are still being written. Stop them first, or wait until they are done.")


def _follow(backend: Backend, session: Session, turn: Turn, job: Job, run: Run) -> None:
    """Write the session while the model answers. Runs in a thread of its own, so that no page slows the model."""
    work = backend.run(job, run.stops)
    try:
        for item in work:
            if isinstance(item, Drift):
                turn.drift = item
            else:
                _record(session, turn, item)
            if run.stopping and session.place:
                break  # Nobody waits in line for an answer that is not wanted.
    except EngineError as error:
        _fail(turn, run, str(error))
    except gr.Error as error:
        # Who lends a GPU says why there is none, with links that would be shown as text.
        _fail(turn, run, re.sub(r"<[^>]*>", "", str(error.message)))
    except Exception:
        log.exception("the model failed")
        _fail(turn, run, "The model failed. The server's log says why.")
    finally:
        close = getattr(work, "close", None)
        if close is not None:
            close()
        for name in run.rows:
            answer = turn.answers[name]
            if answer.step.state != "done":
                answer.step = replace(answer.step, state="done", finish_reason="stopped")
        session.place = 0
        session.trim()
        session.end()


def _record(session: Session, turn: Turn, step: Step) -> None:
    session.place = step.place
    for index, row in enumerate(step.rows):
        answer = turn.answers[row.variant]
        answer.step = row
        answer.token_ids = tuple(row.token_ids)
        if index in step.routing:
            answer.routing = step.routing[index]


def _fail(turn: Turn, run: Run, sentence: str) -> None:
    for name in run.rows:
        answer = turn.answers[name]
        if answer.step.state != "done":
            answer.step = replace(answer.step, state="done", finish_reason="error", error=sentence)


def ticks(run: Run) -> Iterator[bool]:
    """When to draw: now, then at most 12 times a second, and once more at the end.

    Closing it (the visitor went away) ends the answers.

    Returns:
        For each drawing whether the routing is due as well.
    """
    due = 0.0
    try:
        while not run.ended.is_set():
            now = time.monotonic()
            routing = now >= due
            if routing:
                due = now + ROUTING_INTERVAL
            yield routing
            run.ended.wait(INTERVAL)
        yield True
    finally:
        if not run.ended.is_set():
            run.stop()
