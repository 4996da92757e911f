# SPDX-License-Identifier: Apache-2.0
"""A conversation as JSON: answers, settings, seeds, routing, drift. And back, trusting nothing in it."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...adapters import clean_label
from ...inference.types import ALL_KINDS, Drift, RoutingRecord, RowStep, Sampling, Variant, VariantDrift
from ...outside.errors import quoted
from ..backend import Backend
from ..limits import LimitError, check_gate, check_prompt, check_sampling, check_text
from ..state.columns import BASE, columns
from ..state.session import Answer, Session, Turn
from ..words import base_name
from . import blind
from .conversation_file import (
    PackedArray,
    SavedAnswer,
    SavedDrift,
    SavedRouting,
    SavedTurn,
    SavedTurns,
    SavedVariant,
    parsed,
)


FORMAT, VERSION = "slim-compare", 1
MAX_EXPERTS = 1_024
# Numbers of a step that are kept as they are.
STEP_NUMBERS = ("tokens", "prompt_tokens", "seconds", "first_token_seconds", "tokens_per_second")


def dump(session: Session, backend: Backend) -> str:
    """The conversation as JSON text."""
    turns = [dump_turn(turn) for turn in session.turns]
    body = {"turns": turns, "votes": dict(blind.votes(session))}
    return json.dumps(dump_head(session, backend) | body, ensure_ascii=False)


def dump_head(session: Session, backend: Backend) -> dict[str, Any]:
    """All but the turns, as plain values."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "base": base_name(backend.engine.info),
        "variants": [asdict(v) | {"name": name} for name, v in columns(session, backend).items()],
    }


def dump_turn(turn: Turn, routed: bool = True) -> dict[str, Any]:
    """A turn as plain values, with or without its routing."""
    return {
        "prompt": turn.prompt,
        "system": turn.system,
        "answers": {name: _dump_answer(answer, routed) for name, answer in turn.answers.items()},
        "vote": blind.dump(turn.ballot),
        "drift": None
        if turn.drift is None
        else {
            "tokens": list(turn.drift.tokens),
            "variants": [
                {"variant": v.variant, "log_ratio": v.log_ratio.tolist(), "kl": v.kl.tolist()}
                for v in turn.drift.variants
            ],
        },
    }


def _dump_answer(answer: Answer, routed: bool) -> dict[str, Any]:
    step, routing = answer.step, answer.routing if routed else None
    return {
        "variant": asdict(answer.variant),
        "text": step.text,
        "finish_reason": step.finish_reason,
        "error": step.error,
        **{name: getattr(step, name) for name in STEP_NUMBERS},
        "token_ids": list(answer.token_ids),
        "sampling": asdict(answer.sampling),
        **asdict(answer.gate),
        "routing": None
        if routing is None
        else {
            "tokens": list(routing.tokens),
            "prompt_tokens": routing.prompt_tokens,
            "modules": list(routing.modules),
            "blocks": list(routing.blocks),
            "num_experts": routing.num_experts,
            # Millions of numbers in a long conversation: packed, they stay a file that opens.
            "weights": _dump_array(routing.weights, np.float16),
            "distance": _dump_array(routing.distance, np.float32),
            "cluster": _dump_array(routing.cluster, np.int16),
            **(_dump_gate(routing) if answer.gated else {}),
        },
    }


def _dump_gate(routing: RoutingRecord) -> dict[str, Any]:
    # In full: where a gate is a little open, it must not come back as closed.
    return {
        "gate": _dump_array(routing.gate, np.float32),
        "reference": _dump_array(routing.reference, np.float32),
        "turn": routing.turn,
        "complete": routing.complete,
    }


def _dump_array(tensor: Tensor, dtype: type) -> dict[str, Any]:
    array = np.ascontiguousarray(tensor.numpy().astype(np.dtype(dtype).newbyteorder("<")))
    return {
        "dtype": np.dtype(dtype).name,
        "shape": list(array.shape),
        "base64": base64.b64encode(array.tobytes()).decode("ascii"),
    }


def load(
    path: Any, base: str, loaded: Mapping[str, Variant], max_bytes: int, next_id: Callable[[], int]
) -> tuple[list[Turn], str]:
    """Turns from a file.

    Args:
        path: of the file.
        base: name of the current base model.
        loaded: the variants by column, as they are now.
        max_bytes: the most that is read.
        next_id: numbers the turns.

    Returns:
        The turns, and the name of the base that they are of if it is another one, else "".

    Raises:
        LimitError: with a sentence on what is wrong with it.
    """
    try:
        file = Path(path)
        if file.stat().st_size > max_bytes:
            raise LimitError(f"The file has {file.stat().st_size:,} bytes; at most {max_bytes:,} are read.")
        data = json.loads(file.read_text(encoding="utf-8"))
    except LimitError:
        raise
    except (OSError, TypeError, ValueError, RecursionError):  # of numbers of thousands of digits, too
        raise LimitError("The file is not a JSON file that this app exported.") from None
    return turns_of(data, base, loaded, next_id)


def turns_of(
    data: Any, base: str, loaded: Mapping[str, Variant], next_id: Callable[[], int]
) -> tuple[list[Turn], str]:
    """Turns from what `json` read; the arguments, what is returned and raised are as those of `load`."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise LimitError("This is not a conversation that this app exported.")
    if data.get("version") != VERSION:
        raise LimitError(
            f"The conversation has version {quoted(data.get('version'), 20)}; this app reads version {VERSION}."
        )
    other_base = clean_label(check_text(data.get("base"), "The name of the base in the conversation"))
    other_base = "" if other_base == clean_label(base) else other_base
    conversation = parsed(SavedTurns, data, "All")
    return [_load_turn(turn, other_base, loaded, next_id()) for turn in conversation.turns], other_base


def _load_turn(turn: SavedTurn, other_base: str, loaded: Mapping[str, Variant], turn_id: int) -> Turn:
    if strangers := [name for name in turn.answers if name not in loaded]:
        raise LimitError(
            f"The conversation has answers of {quoted(strangers[0], 40)}; loaded here are {', '.join(sorted(loaded))}."
        )
    answers = {
        name: _load_answer(name, other_base, parsed(SavedAnswer, answer, "An answer"), loaded[name])
        for name, answer in turn.answers.items()
    }
    system = check_text(turn.system, "A system prompt in the conversation")
    drift = None if turn.drift is None else _load_drift(turn.drift, loaded)
    return Turn(turn_id, check_prompt(turn.prompt), system, answers, drift, blind.load(turn.vote, answers))


def _load_answer(name: str, other_base: str, answer: SavedAnswer, current: Variant) -> Answer:
    step = RowStep(
        name,
        "done",
        text=answer.text,
        finish_reason=answer.finish_reason,
        error=answer.error,
        token_ids=tuple(answer.token_ids),
        **{number: getattr(answer, number) for number in STEP_NUMBERS},
    )
    routing = answer.routing
    return Answer(
        _load_variant(name, other_base, answer.variant, current),
        step,
        sampling_of(answer.sampling),
        step.token_ids,
        None if routing is None else _load_routing(name, routing),
        check_gate(answer.strength, answer.quantile),
        # Files from before there were gates do not mention them.
        gated=routing is not None and routing.gate is not None,
    )


def sampling_of(settings: Any) -> Sampling:
    """How tokens were chosen, from plain values.

    Raises:
        LimitError: with a sentence on what is wrong with them.
    """
    if not isinstance(settings, dict):
        raise LimitError("sampling in the conversation must be an object.")
    if unknown := set(settings) - {field.name for field in fields(Sampling)}:
        raise LimitError(f"The conversation has an unknown setting {quoted(min(map(str, unknown)), 40)}.")
    return check_sampling(**settings)


def _load_variant(name: str, other_base: str, saved: SavedVariant | None, current: Variant) -> Variant:
    """Who answered: the column's present variant if it is the same, else one that is not loaded here."""
    if saved is None or (name == BASE and not other_base):
        if other_base:
            raise LimitError("variant in the conversation is missing.")
        return current
    if saved.kind not in ALL_KINDS:
        raise LimitError("An answer in the conversation is of an unknown kind.")
    label = clean_label(check_text(saved.label, "A name in the conversation"))
    detail = clean_label(check_text(saved.detail, "A detail in the conversation"))
    strength = check_gate(saved.strength, None).strength
    if other_base:
        return Variant("", saved.kind, f"{label} ({other_base})", saved.parameters, saved.bytes, detail, strength)
    variant = Variant("", saved.kind, label, saved.parameters, saved.bytes, detail, strength)
    same = all(getattr(variant, key) == getattr(current, key) for key in ("kind", "label", "parameters"))
    return current if same else variant


def _load_routing(name: str, saved: SavedRouting) -> RoutingRecord:
    weights = _array(saved.weights, "routing.weights", np.float16, 3)
    distance = _array(saved.distance, "routing.distance", np.float32, 2)
    cluster = _array(saved.cluster, "routing.cluster", np.int16, 2)
    gate, reference, turn = torch.ones_like(distance), torch.zeros_like(distance), 0
    if "gate" in saved.model_fields_set:
        if saved.gate is None or saved.reference is None or saved.turn is None:
            raise LimitError("routing in the conversation must have gate, reference and turn, or no gate.")
        gate = _array(saved.gate, "routing.gate", np.float32, 2)
        reference, turn = _array(saved.reference, "routing.reference", np.float32, 2), saved.turn
    shape = (len(saved.modules), len(saved.tokens))
    fits = (
        weights.shape[:2] == distance.shape == cluster.shape == gate.shape == reference.shape == shape
        and len(saved.blocks) == len(saved.modules)
        and saved.prompt_tokens <= len(saved.tokens)
        and (turn < len(saved.tokens) or not turn)
        and 1 <= saved.num_experts <= weights.shape[2] <= MAX_EXPERTS
    )
    if not fits or not saved.modules:
        raise LimitError("The routing in the conversation has parts of different sizes.")
    for shares in (weights, gate):
        if shares.numel() and not (float(shares.min()) >= 0 and float(shares.max()) <= 1.001):
            raise LimitError("The routing in the conversation has weights outside 0 to 1.")
    return RoutingRecord(
        name,
        tuple(saved.tokens),
        saved.prompt_tokens,
        tuple(saved.modules),
        tuple(saved.blocks),
        saved.num_experts,
        weights,
        distance,
        cluster,
        gate=gate,
        reference=reference,
        turn=turn,
        complete=saved.complete,
    )


def _load_drift(saved: SavedDrift, known: Mapping[str, Variant]) -> Drift:
    drifts = []
    for reader in saved.variants:
        if not isinstance(reader.variant, str) or reader.variant not in known:
            raise LimitError("The drift in the conversation is of an unknown variant.")
        if not len(reader.log_ratio) == len(reader.kl) == len(saved.tokens):
            raise LimitError("The drift in the conversation has parts of different sizes.")
        log_ratio, kl = (torch.tensor(numbers, dtype=torch.float32) for numbers in (reader.log_ratio, reader.kl))
        drifts.append(VariantDrift(reader.variant, log_ratio, kl))
    return Drift(tuple(saved.tokens), tuple(drifts))


def _array(packed: PackedArray, name: str, dtype: type, dimensions: int) -> Tensor:
    kind = np.dtype(dtype)
    if packed.dtype != kind.name or len(packed.shape) != dimensions:
        raise LimitError(f"{name} in the conversation must be packed {kind.name} numbers of {dimensions} dimensions.")
    try:
        raw = base64.b64decode(packed.base64, validate=True)
    except (binascii.Error, ValueError):
        raise LimitError(f"{name} in the conversation is not base64.") from None
    if len(raw) != math.prod(packed.shape) * kind.itemsize:
        raise LimitError(f"{name} in the conversation does not have the size that it states.")
    array = np.frombuffer(raw, kind.newbyteorder("<")).reshape(packed.shape)
    if not np.isfinite(array).all():
        raise LimitError(f"{name} in the conversation has numbers that are not finite.")
    return torch.from_numpy(array.astype({"float16": np.float32, "float32": np.float32, "int16": np.int64}[kind.name]))
