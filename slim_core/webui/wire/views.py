# SPDX-License-Identifier: Apache-2.0
"""A session as plain values for the page, which shows all text in them as text, never as HTML."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from ...base.formatting import share
from ...inference import GateSetting
from ...inference.types import RoutingRecord, RowStep, Variant, kind_name
from ..backend import Backend
from ..state.columns import ADAPTERS, BASE, columns
from ..state.session import Answer, Session, Turn
from ..words import (
    answer_settings,
    describe,
    distance_sentence,
    drift_sentence,
    likelihood,
    no_bypass,
    speed,
    state,
)
from . import blind
from .diff import differences
from .drift import by_verdict, changed_gates, exactness, taught
from .payload import pack_drift
from .peek import metered
from .verdict import KINDS, of_variant, verdicts


LATEST_ALONE = (
    "This base reads only the latest prompt: its chat template leaves out what was said before. Every prompt is a "
    "new question."
)

NOTHING_ASKED = (
    "Ask something under Compare. The routing of each token appears here while the answer is being written."
)
NOTHING_RECORDED = "This answer has no routing: nothing was recorded, or the conversation grew too long to keep it."
MOVED = 0.7  # nats from which an adapter counts as moved: the answer is half or twice as likely


def transcript(session: Session, backend: Backend, afresh: bool = False) -> dict[str, Any]:
    """The columns and the conversation.

    Args:
        session: the visitor's.
        backend: the model.
        afresh: draw the controls again although nothing has changed, to undo a change that was refused.
    """
    value = {
        "afresh": time.time_ns() if afresh else 0,
        "columns": [
            {
                "name": name,
                "kind": v.kind,
                "what": kind_name(v.kind),
                "label": v.label,
                "own": name in session.own_variants,
                "size": describe(v, backend.engine.info),
            }
            for name, v in columns(session, backend).items()
        ],
        "gates": {
            name: _gate(v, session.gate(v)) for name, v in columns(session, backend).items() if v.strength is not None
        },
        "metered": metered(session, backend),
        "note": LATEST_ALONE if session.turns and backend.reads_latest_only else "",
        "ready": session.opened,
        "running": session.run is not None,
        "view": session.view,
        "turns": [_turn(session, turn, backend) for turn in session.turns],
        "tally": blind.tally(session, backend),
    }
    return blind.cover(value, session, backend) if session.blind else value


def _gate(variant: Variant, gate: GateSetting) -> dict[str, Any]:
    """The gate of a column: its strength and where it begins to close, as trained and as this visitor asks for."""
    trained, stored = variant.measure and variant.measure.quantile, variant.quantiles
    choices = {*stored, trained, gate.quantile} - {None} if len(stored) > 1 else ()
    return {
        "trained": {"strength": variant.strength, "quantile": trained},
        "asked": asdict(gate),
        "quantiles": sorted(choices),
    }


def shelf(session: Session, backend: Backend) -> list[dict[str, Any]]:
    """What answers in each column that an adapter can fill, for the Adapters tab."""
    loaded = columns(session, backend)
    app = {variant.name: variant.label for variant in backend.adapters}
    cards = []
    for name, title in ADAPTERS.items():
        variant = loaded.get(name)
        card: dict[str, Any] = {
            "name": name,
            "title": title,
            "own": name in session.own_variants,
            "app": app.get(name),
        }
        if variant is not None:
            opened = backend.visitor_adapters.adapter(session.owner, variant.name)
            card |= {
                "kind": variant.kind,
                "what": kind_name(variant.kind),
                "label": variant.label,
                "size": describe(variant, backend.engine.info),
                "warnings": list(opened.warnings) if opened else [],
            }
        cards.append(card)
    return cards


def _turn(session: Session, turn: Turn, backend: Backend) -> dict[str, Any]:
    last = turn is session.turns[-1]
    return {
        "id": turn.id,
        "prompt": turn.prompt,
        "system": turn.system,
        "vote": blind.vote(turn),
        "verdicts": verdicts(session, turn, backend.reads_latest_only),
        "answers": {name: _answer(session, turn, name, answer, last) for name, answer in turn.answers.items()},
    }


def _answer(session: Session, turn: Turn, name: str, answer: Answer, last: bool) -> dict[str, Any]:
    step = answer.step
    base = turn.answers.get(BASE)
    shown: dict[str, Any] = {
        "label": answer.variant.label,
        "kind": answer.variant.kind,
        "state": step.state,
        "word": state(step, session.place if last else 0),
        "text": step.text,
        "speed": speed(step),
        "how": answer_settings(answer.sampling, step, answer.gate),
        "error": step.error or "",
        "summary": summary(turn, name, answer) if step.state == "done" else [],
    }
    compared = session.view == "differences" and step.state == "done" and name != BASE
    if compared and base is not None and base.step.state == "done":
        shown["diff"] = differences(base.step.text, step.text)
    record = answer.routing  # once: another thread may drop it
    if session.view == "routing" and record is not None:
        packed = answer.packer.pack(record)
        shown["strip"] = {key: packed[key] for key in ("tokens", "prompt_tokens", "token_share", "chunk", "share")}
    return shown


def summary(turn: Turn, name: str, answer: Answer) -> list[str]:
    """The line under an answer: how much of it bypassed LoRA, and how far its variant has drifted from the base."""
    parts = []
    # Only SLIM has identity experts.
    past = answer.identity() if answer.variant.kind == "slim" else None
    if past is not None:
        parts.append(f"{share(past)} of the answer past LoRA")
    if turn.drift is not None:
        for variant in turn.drift.variants:
            if variant.variant == name:
                moved = "moved as it was taught: " if taught(turn) and abs(variant.total) >= MOVED else ""
                parts.append(f"{moved}finds the base’s answer {likelihood(variant.total)}")
    return parts


def status(session: Session) -> str:
    """One sentence per variant. It changes only when a state changes, because screen readers read it aloud."""
    if not session.turns:
        return "Ready."
    if session.run is not None and session.place:
        return f"Waiting in line: {session.place} ahead of you."
    parts, turn = [], session.turns[-1]
    if blind.hides(turn):
        return blind.status(turn, {name: _word(answer.step) for name, answer in turn.answers.items()})
    for answer in turn.answers.values():
        step = answer.step
        verdict = answer.verdict() if step.state == "done" else None
        of_gate = f", {KINDS[of_variant(verdict, answer.gate)].lower()}" if verdict else ""
        parts.append(f"{answer.variant.label}: {_word(step)}{of_gate}.")
    return " ".join(parts)


def shorten(prompt: str, length: int = 300) -> str:
    """The beginning of a prompt, marked where something is left out."""
    return prompt if len(prompt) <= length else f"{prompt[:length]}…"


def _word(step: RowStep) -> str:
    """The state of an answer, with its length once it is done."""
    tokens = f", {step.tokens:,} token{'s' if step.tokens != 1 else ''}" if step.state == "done" else ""
    return f"{state(step)}{tokens}"


def shown_turn(session: Session) -> Turn | None:
    """The turn that Routing and Drift show: the chosen one, else the latest."""
    chosen = session.turn(session.shown_turn)
    return chosen or (session.turns[-1] if session.turns else None)


def answered(session: Session, backend: Backend, turn: Turn | None) -> dict[str, Variant]:
    """The variants that answered a turn, by column; for columns without an answer, the one that would answer now."""
    return columns(session, backend) | {name: a.variant for name, a in (turn.answers.items() if turn else ())}


def routing(session: Session, backend: Backend) -> dict[str, Any]:
    """The routing view."""
    turn = shown_turn(session)
    adapters = {name: variant for name, variant in answered(session, backend, turn).items() if name != BASE}
    chosen = session.shown or next((name for name, v in adapters.items() if v.kind == "slim"), None)
    if chosen not in adapters:
        chosen = next(iter(adapters), None)
    value: dict[str, Any] = {
        "columns": [{"name": name, "kind": v.kind, "label": v.label} for name, v in adapters.items()],
        "turns": [{"id": t.id, "prompt": t.prompt[:80]} for t in session.turns],
        "column": chosen,
        "turn": turn.id if turn else None,
        "empty": "",
        "data": None,
    }
    answer = turn.answers.get(chosen) if turn and chosen else None
    record = answer.routing if answer is not None else None
    value["empty"] = _unrouted(turn, adapters, chosen, record)
    if value["empty"]:
        return value
    if turn is not None and answer is not None and record is not None:
        value["data"] = answer.packer.pack(record) | {"gated": answer.gated}
        if record.among_experts:
            value["note"] = f"{no_bypass(answer.variant.kind)} The colours show the weight of the largest expert."
        measure = answer.variant.measure
        value["distance"] = distance_sentence(measure) if measure is not None else ""
        value["verdict"] = next(
            (v for v in verdicts(session, turn, backend.reads_latest_only) if v["column"] == chosen), None
        )
    return value


def _unrouted(
    turn: Turn | None, adapters: dict[str, Variant], chosen: str | None, record: RoutingRecord | None
) -> str:
    """Why a column has no routing to show; empty if it has one."""
    if blind.hides(turn):
        return blind.VOTE_FIRST
    kind = "slim" if chosen is None else adapters[chosen].kind
    if record is not None and (kind == "slim" or record.among_experts):
        return ""
    why = no_bypass(kind)
    if why:
        routed = next((v.label for v in adapters.values() if v.kind == "slim"), None)
        return why if routed is None else f"{why} Choose {routed} to see a routing."
    return NOTHING_ASKED if turn is None else NOTHING_RECORDED


def drift(session: Session, backend: Backend) -> dict[str, Any]:
    """The drift view."""
    turn = shown_turn(session)
    value: dict[str, Any] = {"turn": turn.id if turn else None, "running": session.run is not None, "data": None}
    if blind.hides(turn):
        return value | {"hidden": blind.VOTE_FIRST}
    if turn is not None and turn.drift is not None:
        by_column = answered(session, backend, turn)
        labels = {name: variant.label for name, variant in by_column.items()}
        data = pack_drift(turn.drift)
        for variant in data["variants"]:
            variant["label"] = labels[variant["name"]]
            variant["kind"] = by_column[variant["name"]].kind
        for variant, measured in zip(data["variants"], turn.drift.variants, strict=True):
            variant["exact"] = exactness(session, turn, measured, variant["label"], backend.reads_latest_only)
        value |= {"groups": by_verdict(session), "note": changed_gates(turn), "taught": taught(turn)}
        value |= {
            "data": data,
            "sentence": drift_sentence(turn.drift, labels, taught(turn)),
            "prompt": shorten(turn.prompt),
        }
    return value
