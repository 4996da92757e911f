# SPDX-License-Identifier: Apache-2.0
"""A conversation as the browser keeps it, so that a restart of the server loses nothing: the exported form without the
routing, with the request that is still unanswered. What the browser sends back is checked like a file.

Of a turn without its blind vote only the prompt is saved, so that nobody can look up who answered. If it is the latest
turn, all columns are asked again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...adapters import clean_label
from ...inference import AS_TRAINED, GateSetting
from ...inference.types import Variant
from ..backend import Backend
from ..limits import LimitError, check_gate, check_text
from ..state.columns import columns
from ..state.session import LastRequest, Session, Turn
from . import blind
from .exchange import dump_head, dump_turn, sampling_of, turns_of


# Characters. Browsers keep about five million for one address, for all its tabs together.
MOST = 1_500_000
DECIMALS = 5  # of drift, which is shown with three digits


@dataclass(frozen=True)
class SavedConversation:
    """A conversation that a browser saved.

    Attributes:
        turns: the conversation, oldest first.
        other_base: the name of the base that it is with, if that is another one, else "".
        gates: what was asked of the gates, by column.
        asked: the unfinished request of the latest turn; None if all have answered.
        blind: whether names were hidden until there is a vote.
        visitor_adapters: names of the adapters that the visitor had brought, by column.
    """

    turns: list[Turn]
    other_base: str
    gates: dict[str, GateSetting]
    asked: LastRequest | None
    blind: bool
    visitor_adapters: dict[str, str]


def dump(session: Session, backend: Backend, limit: int = MOST) -> str:
    """The conversation as JSON text of at most `limit` characters, else only its latest turns; "" where there are
    none.
    """
    loaded = columns(session, backend)
    asked = _waits_for(session, tuple(loaded))
    texts: list[str] = []
    for turn in reversed(session.turns):
        data = dump_turn(_prompt_alone(turn) if blind.hides(turn) else turn, routed=False)
        if asked is not None and turn is session.turns[-1]:
            # These answers are asked for again, so what exists of them is not needed.
            data["answers"] = {n: a for n, a in data["answers"].items() if n not in asked.columns}
        for reader in data["drift"]["variants"] if data["drift"] else ():
            reader |= {key: [round(x, DECIMALS) for x in reader[key]] for key in ("log_ratio", "kl")}
        texts.append(json.dumps(data, ensure_ascii=False))
        limit -= len(texts[-1])
        if limit < 0:
            texts.pop()
            break
    if not texts:
        return ""
    gates = {name: gate for name, variant in loaded.items() if (gate := session.gate(variant)) != AS_TRAINED}
    head = dump_head(session, backend) | {
        "gates": {name: asdict(gate) for name, gate in gates.items()},
        "asked": None if asked is None else asdict(asked),
        "blind": session.blind,
        "own": {name: variant.label for name, variant in session.own_variants.items()},
    }
    return f'{json.dumps(head, ensure_ascii=False)[:-1]}, "turns": [{", ".join(reversed(texts))}]}}'


def _prompt_alone(turn: Turn) -> Turn:
    return Turn(turn.id, turn.prompt, turn.system, {})


def _waits_for(session: Session, loaded: tuple[str, ...]) -> LastRequest | None:
    """The unanswered request of the latest turn. Without its vote, that is one to all columns, in their order."""
    asked, last = session.asked, session.turns[-1] if session.turns else None
    if last is None or not blind.hides(last):
        return asked
    if asked is None:
        # All columns were asked with the same settings, except one that answered again.
        asked = LastRequest((), next(iter(last.answers.values())).sampling, True)
    return LastRequest(loaded, asked.sampling, asked.batched)


def load(text: Any, base: str, loaded: Mapping[str, Variant], next_id: Callable[[], int]) -> SavedConversation:
    """The conversation in the text that a browser sent.

    Args:
        text: anything.
        base: name of the current base model.
        loaded: the variants by column, as they are now.
        next_id: numbers the turns.

    Raises:
        LimitError: with a sentence on what is wrong with it.
    """
    # The turns have at most MOST characters; the head comes on top.
    if not isinstance(text, str) or len(text) > 2 * MOST:
        raise LimitError(f"This is not a conversation that this app saved, of at most {2 * MOST:,} characters.")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise LimitError("This is not a conversation that this app saved.") from None
    turns, other_base = turns_of(data, base, loaded, next_id)
    gates = _gates(data.get("gates", {}), loaded)
    asked = _asked(data.get("asked"), loaded) if turns else None
    own = data.get("own", {})
    if not isinstance(own, dict):
        raise LimitError("The adapters in the conversation must be an object.")
    labels = {name: clean_label(check_text(own[name], "A name in the conversation")) for name in loaded if name in own}
    return SavedConversation(turns, other_base, gates, asked, data.get("blind") is True, labels)


def _gates(data: Any, loaded: Mapping[str, Variant]) -> dict[str, GateSetting]:
    if not isinstance(data, dict) or not all(isinstance(gate, dict) for gate in data.values()):
        raise LimitError("The gates in the conversation must be objects.")
    # Those of columns that no longer exist or have no gate are ignored.
    gated = {name: variant for name, variant in loaded.items() if name in data and variant.strength is not None}
    return {
        name: check_gate(data[name].get("strength"), data[name].get("quantile"), variant.quantiles)
        for name, variant in gated.items()
    }


def _asked(data: Any, loaded: Mapping[str, Variant]) -> LastRequest | None:
    if data is None:
        return None
    if not isinstance(data, dict) or not isinstance(data.get("columns"), list):
        raise LimitError("What the conversation waits for must be an object with a list of columns.")
    wanted = [name for name in loaded if name in data["columns"]]
    return (
        LastRequest(tuple(wanted), sampling_of(data.get("sampling")), data.get("batched") is not False)
        if wanted
        else None
    )
