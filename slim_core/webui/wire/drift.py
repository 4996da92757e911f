# SPDX-License-Identifier: Apache-2.0
"""What the Drift tab shows: how much less likely each variant finds the base's own answer, in domain and outside."""

from __future__ import annotations

from typing import Any

from ...inference import AS_TRAINED
from ...inference.types import VariantDrift
from ..state.session import Session, Turn
from ..words import gate_words
from . import blind
from .verdict import KINDS, by_construction


# In nats: a tenth of a percent of a probability.
NEAR = 1e-3


def same_tokens(drift: VariantDrift) -> int:
    """At how many tokens of the base's answer a variant's distribution is the base's, or very near to it."""
    return int(((drift.kl.abs() <= NEAR) & (drift.log_ratio.abs() <= NEAR)).sum())


def exactness(session: Session, turn: Turn, drift: VariantDrift, label: str, reads_latest_only: bool = False) -> str:
    """Where a variant with a gate is the base, in a sentence; empty where it is not.

    Args:
        session: the visitor's.
        turn: of the session.
        drift: of a column of the turn.
        label: the variant's name for people.
        reads_latest_only: whether the base reads only the latest prompt, so that earlier turns do not matter.
    """
    answer = turn.answers.get(drift.variant)
    verdict = answer.verdict() if answer is not None else None
    same, tokens = same_tokens(drift), len(drift.kl)
    if verdict is None or not same:
        return ""
    if same == tokens and by_construction(session, turn, drift.variant, reads_latest_only):
        return f"{label} is exactly the base, at every token: every gate was 0, so by construction."
    where = "every token" if same == tokens else f"{same} of {tokens} tokens"
    return f"{label} is within a thousandth of a nat of the base at {where}."


def taught(turn: Turn) -> bool:
    """Whether a gate as it was trained judged the prompt to be like the training data: there the adapter was
    meant to move.
    """
    judges = (answer for answer in turn.answers.values() if answer.gated and answer.gate == AS_TRAINED)
    return any(verdict is not None and verdict.kind == "like" for verdict in (judge.verdict() for judge in judges))


def changed_gates(turn: Turn) -> str:
    """A sentence about gates that were not as they were trained; empty where all were."""
    changed = [answer for answer in turn.answers.values() if answer.gate != AS_TRAINED]
    parts = [f"{answer.variant.label} {gate_words(answer.gate)}" for answer in changed]
    return f"Measured with a changed gate: {'; '.join(parts)}." if parts else ""


def by_verdict(session: Session) -> list[dict[str, Any]]:
    """The mean KL of the conversation's prompts so far, by verdict; empty without a gate.

    Gates as they were trained: changed gates and their verdicts are not counted.
    """
    by_kind: dict[str, dict[str, Any]] = {}
    for turn in session.turns:
        if blind.hides(turn):
            continue
        judges = [a for _, a in sorted(turn.answers.items(), reverse=True) if a.gate == AS_TRAINED and a.gated]
        verdict = judges[0].verdict() if judges else None
        if verdict is None or turn.drift is None:
            continue
        row = by_kind.setdefault(verdict.kind, {"prompts": 0, "sums": {}})
        row["prompts"] += 1
        for drift in turn.drift.variants:
            if drift.variant in turn.answers and turn.answers[drift.variant].gate != AS_TRAINED:
                continue
            label = turn.answers[drift.variant].variant.label if drift.variant in turn.answers else drift.variant
            total, tokens = row["sums"].get(label, (0.0, 0))
            row["sums"][label] = (total + float(drift.kl.double().sum()), tokens + len(drift.kl))
    return [
        {"title": KINDS[kind], "prompts": by_kind[kind]["prompts"], "kl": _means(by_kind[kind]["sums"])}
        for kind in ("like", "mixed", "unlike")
        if kind in by_kind
    ]


def _means(sums: dict[str, tuple[float, int]]) -> dict[str, float]:
    return {label: round(total / tokens, 5) for label, (total, tokens) in sums.items() if tokens}
