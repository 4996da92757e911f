# SPDX-License-Identifier: Apache-2.0
"""The blind vote on the page: nothing that is sent before a vote reveals who answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..backend import Backend
from ..limits import LimitError
from ..state.ballot import LETTERS, TIE, Ballot, shuffled
from ..state.columns import columns
from ..state.session import Session, Turn


VOTE_FIRST = "Who answered is hidden until you have voted under Compare, or have switched hiding off in its settings."
NO_EXPORT = "Vote on all answers first, or switch hiding off in the settings: the file would reveal who answered."


def hides(turn: Turn | None) -> bool:
    """Whether the names of a turn are still hidden."""
    return turn is not None and turn.ballot is not None and turn.ballot.hides


def reveal(session: Session) -> None:
    """Reveal the names of turns without a vote."""
    for turn in session.turns:
        if hides(turn):
            turn.ballot = None


def ballot(session: Session, backend: Backend, turn: Turn, asked: Sequence[str]) -> Ballot | None:
    """The vote on a turn of which some or all answers are written again; None where there is none.

    Args:
        session: the visitor's.
        backend: the model.
        turn: what is asked.
        asked: the columns that answer.
    """
    if turn.ballot is not None and turn.ballot.hides and set(asked) <= set(turn.ballot.order):
        return turn.ballot
    # A vote needs all answers, and an earlier vote was about other answers.
    return shuffled(asked) if session.blind and set(asked) == set(columns(session, backend)) else None


def order(session: Session, backend: Backend, turn: Turn) -> tuple[str, ...]:
    """The columns of a turn as they stand on the page from A on."""
    return turn.ballot.order if turn.ballot is not None else tuple(columns(session, backend))


def column_of(session: Session, backend: Backend, name: Any) -> Any:
    """The column that the page means for the last turn: a letter stands for one while names are hidden."""
    if not session.blind or not session.turns or not isinstance(name, str):
        return name
    by_letter = dict(zip(LETTERS, order(session, backend, session.turns[-1]), strict=False))
    return by_letter.get(name)


def cover(value: dict[str, Any], session: Session, backend: Backend) -> dict[str, Any]:
    """A transcript with letters for columns; a turn without a vote does not reveal who answered."""
    orders = [order(session, backend, turn) for turn in session.turns]
    count = max(map(len, [tuple(columns(session, backend)), *orders]))
    blank = {"kind": "hidden", "what": "", "own": False, "size": ""}
    heads = [{"name": letter, "label": letter} | blank for letter in LETTERS[:count]]
    turns = [_turn(*parts) for parts in zip(value["turns"], session.turns, orders, strict=True)]
    return value | {"columns": heads, "gates": {}, "metered": False, "turns": turns}


def _turn(shown: dict[str, Any], turn: Turn, names: tuple[str, ...]) -> dict[str, Any]:
    letters = dict(zip(names, LETTERS, strict=False))
    answers = {letters[name]: answer for name, answer in shown["answers"].items() if name in letters}
    if not hides(turn):
        revealed = {letter: answer | {"label": f"{letter}: {answer['label']}"} for letter, answer in answers.items()}
        return shown | {"answers": revealed}
    covered = {letter: _covered(letter, answers[letter]) for letter in sorted(answers)}
    return shown | {"answers": covered, "verdicts": []}


def _covered(letter: str, answer: dict[str, Any]) -> dict[str, Any]:
    # Speed, drift and identity differ from column to column, and differences are differences from the base.
    visible = {name: answer[name] for name in ("state", "word", "text", "error")}
    return visible | {"label": letter, "kind": "hidden", "speed": "", "how": "", "summary": []}


def vote(turn: Turn) -> dict[str, Any] | None:
    """The vote below the answers of a turn; None if there is none."""
    ballot = turn.ballot
    if ballot is None:
        return None
    letters = list(LETTERS[: len(ballot.order)])
    if ballot.hides:
        ready = all(answer.step.state == "done" for answer in turn.answers.values())
        return {"letters": letters, "ready": ready, "sentence": ""}
    labels = [turn.answers[name].variant.label for name in ballot.order]
    revealed = ", ".join(f"{letter} is {label}" for letter, label in zip(letters, labels, strict=True))
    best = "" if ballot.best == TIE else labels[ballot.order.index(ballot.best)]
    chosen = f"You voted for {best}" if best else "You found no difference"
    return {"letters": letters, "ready": False, "sentence": f"{chosen}: {revealed}."}


def status(turn: Turn, words: Mapping[str, str]) -> str:
    """The screen reader text of a turn whose names are hidden.

    Args:
        turn: that is hidden.
        words: by column, what happens to it.
    """
    pairs = zip(LETTERS, turn.ballot.order if turn.ballot is not None else (), strict=False)
    return " ".join(f"{letter}: {words[name]}." for letter, name in pairs if name in words)


def votes(session: Session) -> Counter[str]:
    """The visitor's votes, by the name of who got them; `TIE` for no difference."""
    return session.votes + session.votes_of_turns()


def tally(session: Session, backend: Backend) -> str:
    """The votes in a sentence; empty where there are none."""
    counts = votes(session)
    if not counts:
        return ""
    names = [variant.label for variant in columns(session, backend).values()]
    names += [name for name in counts if name not in names and name != TIE]
    parts = [f"{name} {counts[name]}" for name in dict.fromkeys(names)]
    return f"Your votes: {', '.join(parts)}, no difference {counts[TIE]}."


# ---- in a file


def dump(ballot: Ballot | None) -> dict[str, Any] | None:
    """A vote for a file."""
    return None if ballot is None or ballot.hides else {"order": list(ballot.order), "best": ballot.best}


def load(value: Any, names: Mapping[str, Any]) -> Ballot | None:
    """A vote from a file.

    Args:
        value: as it stands there.
        names: the columns that answered.

    Raises:
        LimitError: if it is not a vote.
    """
    if value is None:
        return None
    saved_order = value.get("order") if isinstance(value, dict) else None
    placed = [name for name in saved_order if isinstance(name, str)] if isinstance(saved_order, list) else []
    fits = saved_order == placed and len(placed) <= len(LETTERS) and sorted(placed) == sorted(names)
    if not fits or value.get("best") not in (*placed, TIE):
        raise LimitError(
            "A vote in the conversation must name the columns that answered, and the best of them or “tie”."
        )
    return Ballot(tuple(placed), value["best"])
