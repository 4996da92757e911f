# SPDX-License-Identifier: Apache-2.0
"""The gate's verdict on a prompt, in words: whether SLIM judged it to be like its training data, and whether it gives
the base's answer.
"""

from __future__ import annotations

from typing import Any, Literal

from ...base.formatting import distance, share
from ...inference import GateSetting, Message, Verdict
from ..state.columns import BASE
from ..state.session import Answer, Session, Turn


Kind = Literal["like", "unlike", "mixed", "open"]
KINDS: dict[Kind, str] = {
    "like": "Like the training data",
    "unlike": "Unlike the training data",
    "mixed": "Partly like the training data",
    "open": "Gate forced open",
}


def of_variant(verdict: Verdict, gate: GateSetting) -> Kind:
    """A verdict's kind. A gate that is forced open has none."""
    return "open" if gate.strength == 0 else verdict.kind


def past(verdict: Verdict) -> str:
    """The share that went past LoRA."""
    return f"{share(verdict.identity)} past LoRA"


def far(verdict: Verdict) -> str:
    """How far the context is, and how far it may be."""
    return f"distance {distance(verdict.distance)}; up to {distance(verdict.reference)} is like the training data"


def verdicts(session: Session, turn: Turn, reads_latest_only: bool = False) -> list[dict[str, Any]]:
    """One for each column of a turn that has a gate.

    Args:
        session: the visitor's.
        turn: of the session.
        reads_latest_only: whether the base reads only the latest prompt, so that earlier turns do not matter.
    """
    answers = {name: answer for name, answer in turn.answers.items() if answer.gated}
    entries = []
    for name, answer in answers.items():
        verdict = answer.verdict()
        if verdict is None:
            # It is being read, or its record was dropped.
            if answer.step.state != "done":
                doing = "waits for the model" if answer.step.state == "waiting" else "is reading the prompt"
                sentence = f"{answer.variant.label} {doing}…"
                entries.append({"column": name, "kind": "waiting", "sentence": sentence, "numbers": ""})
            continue
        sentence, exact = _sentence(session, turn, name, verdict, reads_latest_only)
        entries.append(
            {
                "column": name,
                "kind": of_variant(verdict, answer.gate),
                "sentence": sentence,
                "numbers": f"{past(verdict)} · {far(verdict)}{_gates(verdict, exact)}",
            }
        )
    return entries


def _sentence(session: Session, turn: Turn, name: str, verdict: Verdict, reads_latest_only: bool) -> tuple[str, bool]:
    """The verdict in a sentence, and whether it says that the answer is the base's by construction."""
    answer, base = turn.answers[name], turn.answers.get(BASE)
    label, kind = answer.variant.label, of_variant(verdict, answer.gate)
    begin = f"{KINDS[kind]}: "
    if kind == "open":
        is_far = verdict.distance > verdict.reference
        compared = "though this is unlike its training data" if is_far else "and this is like its training data"
        return f"{begin}{label} answers with its LoRA experts, {compared}.", False
    if verdict.goes_past:
        return f"{KINDS[kind]}, but {share(verdict.identity)} of it went past {label}’s LoRA experts.", False
    if kind == "like":
        return f"{begin}{label} answers with its LoRA experts.", False
    begin += f"{label} sent {share(verdict.identity)} of it past LoRA"
    both_done = base is not None and answer.step.state == base.step.state == "done"
    same_text = base is not None and answer.step.text == base.step.text
    if by_construction(session, turn, name, reads_latest_only):
        # One of them may have been stopped.
        as_far = ("" if same_text else ", as far as both go,") if both_done else ", so far,"
        return f"{begin} and gives{as_far} the base’s own answer, token for token.", True
    if both_done and same_text and answer.token_ids:
        return f"{begin}, and the answers are the same, word for word.", False
    return f"{begin}.", False


def by_construction(session: Session, turn: Turn, name: str, reads_latest_only: bool) -> bool:
    """Whether the answer in a column is the base's because every gate was 0 when it read what the base read."""
    answer, base = turn.answers.get(name), turn.answers.get(BASE)
    verdict = None if answer is None else answer.verdict()
    if answer is None or base is None or verdict is None or not verdict.exact or not answer.token_ids:
        return False
    asked_the_same = reads_latest_only or _asked(session, turn, name) == _asked(session, turn, BASE)
    return asked_the_same and _agree(answer, base) and answer.sampling == base.sampling


def _gates(verdict: Verdict, exact: bool) -> str:
    """What the gates did."""
    if exact:
        return " · every gate is 0 at every token: the base’s answer by construction, not by luck"
    if verdict.exact:
        return " · every gate is 0 at every token"
    if verdict.closed == 1:
        return " · every gate is 0 from the turn’s first word on"
    return f" · {share(verdict.closed)} of the gates are closed" if verdict.closed else ""


def _agree(answer: Answer, base: Answer) -> bool:
    """Whether one answer is the other, or as much of it as is there."""
    shorter, longer = sorted((answer, base), key=lambda each: len(each.token_ids))
    same_tokens = longer.token_ids[: len(shorter.token_ids)] == shorter.token_ids
    return same_tokens and longer.step.text.startswith(shorter.step.text)


def _asked(session: Session, turn: Turn, name: str) -> tuple[Message, ...]:
    """What the variant of a column was asked, with what it had said before."""
    return session.messages(name, turn, turn.answers[name].variant.name)
