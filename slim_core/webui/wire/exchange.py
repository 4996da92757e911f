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
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from ...adapters import clean_label
from ...inference.types import ALL_KINDS, Drift, FinishReason, RoutingRecord, RowStep, Sampling, Variant, VariantDrift
from ..backend import Backend
from ..limits import LimitError, check_prompt, check_sampling, check_strength, check_text
from ..state.columns import BASE, columns
from ..state.session import Answer, Session, Turn
from ..words import base_name
from . import blind


FORMAT, VERSION = "slim-compare", 1
MAX_TURNS, MAX_TOKENS, MAX_LINEARS, MAX_EXPERTS = 200, 100_000, 5_000, 1_024
# Numbers of a step that are kept as they are.
STEP_NUMBERS = ("tokens", "prompt_tokens", "seconds", "first_token_seconds", "tokens_per_second")


def dump(session: Session, backend: Backend) -> str:
    """The conversation as JSON text."""
    turns = [dump_turn(turn) for turn in session.turns]
    rest = {"turns": turns, "votes": dict(blind.votes(session))}
    return json.dumps(dump_head(session, backend) | rest, ensure_ascii=False)


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
        "strength": answer.strength,
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
            f"The conversation has version {str(data.get('version'))[:20]!a}; this app reads version {VERSION}."
        )
    other_base = clean_label(check_text(data.get("base"), "The name of the base in the conversation"))
    other_base = "" if other_base == clean_label(base) else other_base
    turns = _list(data.get("turns"), "turns", MAX_TURNS)
    try:
        return [_load_turn(_object(turn, "A turn"), other_base, loaded, next_id()) for turn in turns], other_base
    except OverflowError:
        raise LimitError("A number in the conversation is too large.") from None


def _load_turn(data: dict, other_base: str, loaded: Mapping[str, Variant], turn_id: int) -> Turn:
    answers = _object(data.get("answers"), "answers")
    if strangers := [str(name)[:40] for name in answers if name not in loaded]:
        raise LimitError(
            f"The conversation has answers of {strangers[0]!r}; loaded here are {', '.join(sorted(loaded))}."
        )
    loaded_answers = {
        n: _load_answer(n, other_base, _object(answer, "An answer"), loaded[n]) for n, answer in answers.items()
    }
    system = check_text(data.get("system", ""), "A system prompt in the conversation")
    drift, vote = _load_drift(data.get("drift"), loaded), blind.load(data.get("vote"), loaded_answers)
    return Turn(turn_id, check_prompt(data.get("prompt")), system, loaded_answers, drift, vote)


def _load_answer(name: str, other_base: str, data: dict, current: Variant) -> Answer:
    reason = data.get("finish_reason")
    if reason not in get_args(FinishReason):
        raise LimitError("An answer in the conversation has no known finish_reason.")
    error = data.get("error")
    numbers = {key: _number(data.get(key), key, optional=key in STEP_NUMBERS[3:]) for key in STEP_NUMBERS}
    ids = tuple(_whole(i, "token_ids") for i in _list(data.get("token_ids"), "token_ids", MAX_TOKENS))
    step = RowStep(
        name,
        "done",
        text=_written(data.get("text"), "An answer"),
        finish_reason=reason,
        error=None if error is None else _written(error, "An error"),
        token_ids=ids,
        **numbers,
    )
    routing = data.get("routing")
    routing = None if routing is None else _object(routing, "routing")
    return Answer(
        _load_variant(name, other_base, data.get("variant"), current),
        step,
        sampling_of(data.get("sampling")),
        ids,
        None if routing is None else _load_routing(name, routing),
        check_strength(data.get("strength")),
        # Files from before there were gates do not mention them.
        gated=routing is not None and "gate" in routing,
    )


def sampling_of(data: Any) -> Sampling:
    """How tokens were chosen, from plain values.

    Raises:
        LimitError: with a sentence on what is wrong with them.
    """
    settings = _object(data, "sampling")
    if unknown := set(settings) - {field.name for field in fields(Sampling)}:
        raise LimitError(f"The conversation has an unknown setting {sorted(map(str, unknown))[0][:40]!r}.")
    return check_sampling(**settings)


def _load_variant(name: str, other_base: str, data: Any, current: Variant) -> Variant:
    """Who answered: the column's present variant if it is the same, else one that is not loaded here."""
    if not other_base and (data is None or name == BASE):
        return current
    data = _object(data, "variant")
    if data.get("kind") not in ALL_KINDS:
        raise LimitError("An answer in the conversation is of no known kind.")
    label = clean_label(check_text(data.get("label"), "A name in the conversation"))
    detail = clean_label(check_text(data.get("detail"), "A detail in the conversation"))
    parameters, memory = (_whole(data.get(key), key, 10**15) for key in ("parameters", "bytes"))
    strength = check_strength(data.get("strength"))
    if other_base:
        return Variant("", data["kind"], f"{label} ({other_base})", parameters, memory, detail, strength)
    variant = Variant("", data["kind"], label, parameters, memory, detail, strength)
    same = all(getattr(variant, key) == getattr(current, key) for key in ("kind", "label", "parameters"))
    return current if same else variant


def _load_routing(name: str, data: dict) -> RoutingRecord:
    tokens = _texts(data.get("tokens"), "routing.tokens", MAX_TOKENS)
    modules = _texts(data.get("modules"), "routing.modules", MAX_LINEARS)
    blocks = tuple(_whole(b, "routing.blocks") for b in _list(data.get("blocks"), "routing.blocks", MAX_LINEARS))
    prompt_tokens = _whole(data.get("prompt_tokens"), "routing.prompt_tokens")
    experts = _whole(data.get("num_experts"), "routing.num_experts")
    weights = _array(data.get("weights"), "routing.weights", np.float16, 3)
    shape = (len(modules), len(tokens))
    distance = _array(data.get("distance"), "routing.distance", np.float32, 2)
    cluster = _array(data.get("cluster"), "routing.cluster", np.int16, 2)
    if "gate" in data:
        gate = _array(data["gate"], "routing.gate", np.float32, 2)
        reference = _array(data.get("reference"), "routing.reference", np.float32, 2)
        turn = _whole(data.get("turn"), "routing.turn")
    else:
        gate, reference, turn = torch.ones_like(distance), torch.zeros_like(distance), 0
    fits = (
        weights.shape[:2] == distance.shape == cluster.shape == gate.shape == reference.shape == shape
        and len(blocks) == len(modules)
        and prompt_tokens <= len(tokens)
        and (turn < len(tokens) or not turn)
        and 1 <= experts <= weights.shape[2] <= MAX_EXPERTS
    )
    if not fits or not modules:
        raise LimitError("The routing in the conversation has parts of different sizes.")
    for part in (weights, gate):
        if part.numel() and not (float(part.min()) >= 0 and float(part.max()) <= 1.001):
            raise LimitError("The routing in the conversation has weights outside 0 to 1.")
    return RoutingRecord(
        name,
        tokens,
        prompt_tokens,
        modules,
        blocks,
        experts,
        weights,
        distance,
        cluster,
        gate=gate,
        reference=reference,
        turn=turn,
    )


def _load_drift(data: Any, known: Mapping[str, Variant]) -> Drift | None:
    if data is None:
        return None
    data = _object(data, "drift")
    tokens = _texts(data.get("tokens"), "drift.tokens", MAX_TOKENS)
    drifts = []
    for item in _list(data.get("variants"), "drift.variants", 16):
        item = _object(item, "drift.variants")
        if not isinstance(item.get("variant"), str) or item["variant"] not in known:
            raise LimitError("The drift in the conversation is of an unknown variant.")
        parts = {}
        for key in ("log_ratio", "kl"):
            numbers = [_number(x, key, low=-1e6) for x in _list(item.get(key), key, MAX_TOKENS)]
            if len(numbers) != len(tokens):
                raise LimitError("The drift in the conversation has parts of different sizes.")
            parts[key] = torch.tensor(numbers, dtype=torch.float32)
        drifts.append(VariantDrift(item["variant"], **parts))
    return Drift(tokens, tuple(drifts))


def _object(value: Any, name: str) -> dict:
    if not isinstance(value, dict):
        raise LimitError(f"{name} in the conversation must be an object.")
    return value


def _list(value: Any, name: str, most: int) -> list:
    if not isinstance(value, list) or len(value) > most:
        raise LimitError(f"{name} in the conversation must be a list of at most {most:,}.")
    return value


def _texts(value: Any, name: str, most: int) -> tuple[str, ...]:
    texts = _list(value, name, most)
    # Tokens may be any bytes of a text, so only what cannot be sent to a browser is refused.
    if not all(_encodes(text) for text in texts):
        raise LimitError(f"{name} in the conversation must be short texts.")
    return tuple(texts)


def _written(value: Any, name: str) -> str:
    # A model may write anything, including control characters, and MAX_TOKENS tokens can be a long text.
    if not _encodes(value, 100 * MAX_TOKENS):
        raise LimitError(f"{name} in the conversation must be text.")
    return value


def _encodes(text: Any, most: int = 1000) -> bool:
    if not isinstance(text, str) or len(text) > most:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _number(value: Any, name: str, optional: bool = False, low: float = 0) -> Any:
    if value is None and optional:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not low <= value <= 1e9
    ):
        raise LimitError(f"{name} in the conversation must be a number.")
    return value


def _whole(value: Any, name: str, most: int = 2**31 - 1) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise LimitError(f"{name} in the conversation must be whole numbers.")
    return value


def _array(value: Any, name: str, dtype: type, dimensions: int) -> Tensor:
    value = _object(value, name)
    shape = tuple(_whole(n, name) for n in _list(value.get("shape"), name, dimensions))
    kind = np.dtype(dtype)
    if value.get("dtype") != kind.name or len(shape) != dimensions or not isinstance(value.get("base64"), str):
        raise LimitError(f"{name} in the conversation must be packed {kind.name} numbers of {dimensions} dimensions.")
    try:
        raw = base64.b64decode(value["base64"], validate=True)
    except (binascii.Error, ValueError):
        raise LimitError(f"{name} in the conversation is not base64.") from None
    if len(raw) != math.prod(shape) * kind.itemsize:
        raise LimitError(f"{name} in the conversation has another size than it says.")
    array = np.frombuffer(raw, kind.newbyteorder("<")).reshape(shape)
    if not np.isfinite(array).all():
        raise LimitError(f"{name} in the conversation has numbers that are not finite.")
    return torch.from_numpy(array.astype({"float16": np.float32, "float32": np.float32, "int16": np.int64}[kind.name]))
