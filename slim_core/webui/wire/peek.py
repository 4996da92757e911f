# SPDX-License-Identifier: Apache-2.0
"""How far the prompt in the box is from the training data, while it is typed. Errors are ignored silently."""

from __future__ import annotations

import logging
import time
from typing import Any

from ...inference import EngineError, verdict_of
from ...inference.types import Row, Variant
from ..backend import Backend
from ..limits import LimitError, check_prompt, check_text
from ..state.columns import columns
from ..state.session import Session, Turn
from .verdict import KINDS, far, of_variant, past


log = logging.getLogger(__name__)
# Longer ones are not even counted in tokens.
MOST_CHARACTERS = 8_000


def gated(session: Session, backend: Backend) -> tuple[str, Variant] | None:
    """The column whose gate the meter shows: SLIM's, else the first that has one."""
    gates = {name: v for name, v in columns(session, backend).items() if v.strength is not None}
    return next(((name, gates[name]) for name in ("slim", *gates) if name in gates), None)


def metered(session: Session, backend: Backend) -> bool:
    """Whether there is a meter at all: on ZeroGPU there is no GPU between two answers."""
    return not backend.zero_gpu and gated(session, backend) is not None


def peek(session: Session, backend: Backend, text: Any, system: Any = "") -> dict[str, Any]:
    """Read a prompt as the next of the conversation.

    Args:
        session: the visitor's.
        backend: the model.
        text: the prompt.
        system: the system prompt it would be asked with; part of the turn where a template has no place for one.

    Returns:
        Its "kind" and "word", the "share" past LoRA and how "far" it is in words, "distance" and "reference";
        {"busy": True} if it may be asked again in a moment; empty if there is nothing to say.
    """
    chosen = gated(session, backend)
    if chosen is None or backend.zero_gpu:
        return {}
    try:
        if len(text) + len(system or "") > MOST_CHARACTERS:
            return {}
        turn = Turn(0, check_prompt(text), check_text(system or "").strip(), {})
    except (LimitError, TypeError):
        return {}
    if session.run is not None or not session.meter.begin():
        return {"busy": True}
    tokens, start = 0, time.monotonic()
    try:
        column, variant = chosen
        row = Row(variant.name, session.messages(column, turn, variant.name), gate=session.gate(variant))
        count = backend.engine.count_tokens(row.messages)
        if not session.meter.fits(count):
            return {}
        stack, _ = backend.visitor_adapters.keep(session)
        with stack:
            start = time.monotonic()
            record = backend.engine.peek(row)
        if record is None:
            return {"busy": True}
        tokens = count
    except (EngineError, LimitError):
        return {}
    except Exception:
        log.exception("the meter failed")
        return {}
    finally:
        session.meter.end(tokens, time.monotonic() - start)
    summary = verdict_of(record)
    kind = of_variant(summary, row.gate)
    return {
        "kind": kind,
        "word": KINDS[kind],
        "share": past(summary),
        "far": far(summary),
        "distance": round(summary.distance, 3),
        "reference": round(summary.reference, 3),
    }
