# SPDX-License-Identifier: Apache-2.0
"""Sentences and numbers that several parts of the page show."""

from __future__ import annotations

from pathlib import Path

from ..base.formatting import count, likelihood, size
from ..baselines import KINDS, Experts
from ..inference import AS_TRAINED, GateSetting, Measure
from ..inference.types import Drift, ModelInfo, RowStep, Sampling, Variant, kind_name


FINISHED = {
    "end": "done",
    "length": "done: length limit reached",
    "stop_string": "done: stop text reached",
    "stopped": "stopped",
    "error": "error",
}


def drift_sentence(drift: Drift, labels: dict[str, str], taught: bool = False) -> str:
    """How likely each variant finds the base's answer, in one sentence.

    Args:
        drift: how the variants read the base's answer.
        labels: the variants' names for people, by column.
        taught: whether the prompt is like the training data, so that the adapters were meant to move.
    """
    parts = [
        f"{labels.get(variant.variant, variant.variant)} finds {'it' if i else 'the base’s answer'} "
        f"{likelihood(variant.total)}"
        for i, variant in enumerate(drift.variants)
    ]
    if not parts:
        return ""
    preface = (
        "This is like the training data, where the adapters moved towards what they were taught: " if taught else ""
    )
    return f"{preface}{'; '.join(parts)}."


def gate_words(gate: GateSetting) -> str:
    """How a gate was changed; empty if it is as it was trained."""
    if gate.strength == 0:
        return "open"
    parts = [] if gate.strength is None else [f"at strength {gate.strength:g}"]
    if gate.quantile is not None:
        parts.append(f"closing beyond {percentage(gate.quantile)} of the training data")
    return ", ".join(parts)


def percentage(share: float) -> str:
    """A share with all its digits: 99.9%."""
    return f"{100 * share:.6g}%"


def answer_settings(sampling: Sampling, step: RowStep, gate: GateSetting = AS_TRAINED) -> str:
    """In a few words: how tokens were chosen, with which gate, and how long the first one took."""
    chosen = f"temperature {sampling.temperature:g}, seed {sampling.seed}" if sampling.temperature else "greedy"
    if gate != AS_TRAINED:
        chosen += f" · gate {gate_words(gate)}"
    first = step.first_token_seconds
    return chosen if first is None else f"{chosen} · first token after {first:,.2f} s"


def state(step: RowStep, place: int = 0) -> str:
    """What is happening to one answer."""
    if step.state == "waiting":
        return f"waiting, {place} ahead of you in line" if place else "waiting"
    if step.state == "reading":
        return "reading the prompt"
    if step.state == "writing":
        return "writing"
    return FINISHED[step.finish_reason or "end"]


def speed(step: RowStep) -> str:
    """Tokens, tokens/s and time of one answer."""
    parts = []
    if step.tokens:
        parts.append(f"{step.tokens:,} token{'s' if step.tokens != 1 else ''}")
    if step.tokens_per_second:
        parts.append(f"{step.tokens_per_second:,.1f} tokens/s")
    if step.seconds:
        parts.append(f"{step.seconds:,.{1 if step.seconds >= 1 else 2}f} s")
    return " · ".join(parts)


def base_name(info: ModelInfo) -> str:
    """The base's name for visitors; for a folder only its last part, so that its place on the server stays unknown."""
    return Path(info.name).name if Path(info.name).is_dir() else info.name


def no_bypass(kind: str) -> str:
    """A sentence: no token can bypass an adapter of this kind, and what happens instead. Empty if tokens can."""
    if kind == "slim":
        return ""
    method = KINDS.get(kind.upper())
    experts = None if method is None else method.experts
    happens = Experts.routing if experts is None else experts.routing
    return f"{kind_name(kind)} has no identity experts, so no token can bypass it: {happens}."


def describe(variant: Variant, info: ModelInfo) -> str:
    """A variant's size in a few words."""
    line = f"{count(variant.parameters)} parameters, {size(variant.bytes)}"
    if variant.kind == "base":
        return f"{base_name(info)}: {line}, {variant.detail or info.dtype}"
    return f"{line}, {variant.detail}" if variant.detail else line


STATISTICS = {
    "rms": "the root of the mean square over the channels, in standard deviations, less 1",
    "max": "the largest over the channels, in standard deviations, less 1",
}
SCOPES = {
    "context": "the running mean of what a Linear has read since the last user turn began",
    "token": "each token by itself",
}


def distance_sentence(measure: Measure) -> str:
    """How an adapter measures the distance."""
    return f"It is the distance of {SCOPES[measure.scope]} from the nearest cluster: {STATISTICS[measure.statistic]}."


def measure_rows(measure: Measure) -> list[list[str]]:
    """How an adapter measures the distance and what follows from it: rows of a name and a text."""
    judged_by = "the mean excess of its own router and all before it" if measure.carries_up else "its own router alone"
    excess = f"strength {measure.strength:g} × (distance − reference)"
    formulas = {
        "gate": f"the LoRA experts’ weights × (1 − {excess}), at least 0",
        "calibrated": f"the LoRA experts’ logits − {excess}",
        "paper": f"the LoRA experts’ logits − strength {measure.strength:g} × the distance",
    }
    rows = [
        ["Format", str(measure.format)],
        ["Distance of", SCOPES[measure.scope]],
        ["Measured as", STATISTICS[measure.statistic]],
    ]
    if measure.variance_floor:
        rows.append(["Least variance", f"{percentage(measure.variance_floor)} of that of the tokens, per channel"])
    if measure.mode != "paper":
        rows.append(["Reference", f"{percentage(measure.quantile)} of the training data are nearer"])
    return [*rows, ["How LoRA yields", formulas[measure.mode]], ["Judged by", judged_by]]
