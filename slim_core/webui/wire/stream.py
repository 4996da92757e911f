# SPDX-License-Identifier: Apache-2.0
"""Streaming answers: a thread follows the model, and the page checks it a few times a second."""

from __future__ import annotations

import contextvars
import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import gradio as gr

from ...inference import EngineError, Stops
from ...inference.types import Drift, Reading, Row, RowStep, Sampling, Step
from ..backend import Backend, Job
from ..limits import LimitError, check_room
from ..state.columns import BASE, columns
from ..state.session import Answer, LastRequest, Run, Session, Turn


# Drawing every token is expensive; 12 updates a second look the same and cost a fraction.
INTERVAL = 1 / 12
ROUTING_INTERVAL = 0.3
# How long a new prompt waits for answers that were told to stop.
STOP_PATIENCE = 5.0
log = logging.getLogger(__name__)


def start(
    backend: Backend, session: Session, turn: Turn, names: Sequence[str], sampling: Sampling, batched: bool
) -> Run:
    """Let some columns answer a turn of the session.

    Args:
        backend: where the model is.
        session: the visitor's; it is written while the answers come.
        turn: already part of the session.
        names: the columns that answer.
        sampling: how tokens are chosen.
        batched: all at once, or one after another.

    Raises:
        LimitError: if answers are still being written, there is no free place, or an adapter is gone.
    """
    loaded = columns(session, backend)
    gates = {name: session.gate(loaded[name]) for name in names}
    rows = tuple(
        Row(loaded[n].name, session.messages(n, turn, loaded[n].name), routing=n != BASE, gate=gates[n]) for n in names
    )
    check_room(max(backend.engine.count_tokens(row.messages) for row in rows), backend.engine.info.context_length)
    base_answer = turn.answers.get(BASE)
    if base_answer is not None and base_answer.variant != loaded[BASE]:
        base_answer = None  # from a file with another base, whose tokens mean nothing here
    # A variant whose adapter has been replaced since this turn can no longer read the base's answer.
    readers = {
        variant.name: name
        for name, variant in loaded.items()
        if name != BASE and (name in names or (name in turn.answers and turn.answers[name].variant == variant))
    }
    # With the gate that a column answers, or has answered, with.
    of_readers = [gates[n] if n in names else turn.answers[n].gate for n in readers.values()]
    run = Run(Stops(len(rows)), tuple(names))
    stack, adapters = backend.visitor_adapters.keep(session)
    try:
        take(session, run)
        try:
            backend.enter()
        except LimitError:
            session.end()
            raise
    except BaseException:
        stack.close()
        raise
    job = Job(
        rows=rows,
        sampling=sampling,
        batched=batched,
        reading=Reading(
            tuple(readers),
            session.messages(BASE, turn, loaded[BASE].name),
            base_answer.token_ids if base_answer and BASE not in names else (),
            tuple(of_readers),
        )
        if readers
        else None,
        adapters=tuple(adapters.items()),
    )
    for name in names:
        gated = loaded[name].strength is not None
        turn.answers[name] = Answer(loaded[name], RowStep(name), sampling, gate=gates[name], gated=gated)
    if BASE in names:
        turn.drift = None
    session.asked = LastRequest(tuple(names), sampling, batched)
    # ZeroGPU time is charged to the visitor, who is known from this thread's context.
    context = contextvars.copy_context()
    arguments = (_follow, backend, session, turn, job, run, readers, stack)
    threading.Thread(target=context.run, args=arguments, daemon=True).start()
    return run


def take(session: Session, run: Run) -> None:
    """Take the session, waiting for a run that was told to stop."""
    if session.begin(run):
        return
    current = session.run
    if current is not None and current.stopping and current.ended.wait(STOP_PATIENCE) and session.begin(run):
        return
    raise LimitError("Answers are still being written. Stop them first, or wait until they are done.")


def _follow(
    backend: Backend, session: Session, turn: Turn, job: Job, run: Run, readers: Mapping[str, str], stack: ExitStack
) -> None:
    """Write the session while the model answers. Runs in a separate thread, so that no page slows down the model."""
    work = backend.run(job, run.stops)
    try:
        for item in work:
            if isinstance(item, Drift):
                turn.drift = Drift(item.tokens, tuple(replace(v, variant=readers[v.variant]) for v in item.variants))
            else:
                _record(session, turn, run, item)
            if run.stopping and session.place:
                break  # Do not queue for an answer that is no longer wanted.
    except EngineError as error:
        _fail(turn, run, str(error))
    except gr.Error as error:
        # ZeroGPU says why there is no GPU, with links that would be shown as text.
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
        if not run.deserted:
            session.asked = None
        session.trim()
        backend.leave()
        session.end()
        # Last: an adapter that was removed meanwhile goes now, and waits for the model to do so.
        stack.close()


def _record(session: Session, turn: Turn, run: Run, step: Step) -> None:
    session.place = step.place
    for index, (column, row) in enumerate(zip(run.rows, step.rows, strict=True)):
        answer = turn.answers[column]
        answer.step = replace(row, variant=column)
        answer.token_ids = tuple(row.token_ids)
        if index in step.routing:
            answer.routing = replace(step.routing[index], variant=column)


def _fail(turn: Turn, run: Run, sentence: str) -> None:
    for name in run.rows:
        answer = turn.answers[name]
        if answer.step.state != "done":
            answer.step = replace(answer.step, state="done", finish_reason="error", error=sentence)


def ticks(run: Run) -> Iterator[bool]:
    """When to draw: now, then at most 12 times a second, and once more at the end.

    Closing it (the visitor has left) ends the answers, unless another page shows them.

    Returns:
        For each drawing whether the routing is due as well.
    """
    due = 0.0
    with run.watched():
        while not run.ended.is_set():
            now = time.monotonic()
            routing = now >= due
            if routing:
                due = now + ROUTING_INTERVAL
            yield routing
            run.ended.wait(INTERVAL)
        yield True
