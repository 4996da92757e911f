# SPDX-License-Identifier: Apache-2.0
"""Answers, routing and drift for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ..base.formatting import distance, likelihood, share
from ..inference import AS_TRAINED, Drift, GateSetting, RoutingRecord, RowStep, Variant, Verdict
from ..outside.errors import visible


BAR = 20
ENDINGS = {
    "length": "cut off at the maximum length",
    "stop_string": "stop text",
    "stopped": "stopped",
    "end": "complete",
}


def answers_view(variants: Sequence[Variant], rows: Sequence[RowStep], numbers: bool = True) -> Table:
    """One column per variant: its name, its answer, and with `numbers` its speed and why it ended."""
    table = Table(expand=True)
    for variant in variants:
        table.add_column(Text(f"{variant.label}\n{variant.detail}".strip()), ratio=1, overflow="fold")
    table.add_row(*(Text(visible(row.text)) if row.error is None else Text(row.error, style="red") for row in rows))
    if not numbers:
        return table
    table.add_section()
    table.add_row(*(Text(_footer(row), style="dim") for row in rows))
    return table


def _footer(row: RowStep) -> str:
    parts = [f"{row.tokens} token{'' if row.tokens == 1 else 's'}"]
    if row.tokens_per_second is not None:
        parts.append(f"{row.tokens_per_second:.0f}/s")
    if row.first_token_seconds is not None:
        parts.append(f"first after {row.first_token_seconds:.2f} s")
    if row.state != "done":
        parts.append(row.state)
    elif row.finish_reason in ENDINGS:
        parts.append(ENDINGS[row.finish_reason])
    return ", ".join(parts)


def verdict_sentence(label: str, verdict: Verdict, same: bool, gate: GateSetting = AS_TRAINED) -> str:
    """How the gate judged the prompt.

    Args:
        label: of the variant.
        verdict: on it.
        same: whether its answer is the base's.
        gate: what was asked of it.
    """
    numbers = (
        f"Past LoRA: {share(verdict.identity)}; distance {distance(verdict.distance)}, up to "
        f"{distance(verdict.reference)} is like the training data; {share(verdict.closed)} of the gates are closed."
    )
    if gate.strength == 0:
        return f"Gate forced open: {label} answers with its LoRA experts. {numbers}"
    if verdict.goes_past:
        return f"Like the training data, but much of it went past {label}'s LoRA experts. {numbers}"
    if verdict.kind == "like":
        return f"Like the training data: {label} answers with its LoRA experts. {numbers}"
    begin = {"unlike": "Unlike the training data", "mixed": "Partly like the training data"}[verdict.kind]
    amount = "most" if verdict.kind == "unlike" else "some"
    outcome = f"{label} sent {amount} of it past LoRA"
    if verdict.exact and same:
        outcome = f"{label} gives the base's own answer, token for token, for every gate is 0 at every token"
    elif same:
        outcome += ", and the answers are the same"
    return f"{begin}: {outcome}. {numbers}"


def identity_by_block(routing: RoutingRecord) -> list[dict[str, float | int | None]]:
    """For each decoder block, over prompt and over answer, the mean share past LoRA and what the gate lets through."""
    blocks = []
    for block in sorted(set(routing.blocks)):
        linears = [i for i, b in enumerate(routing.blocks) if b == block]
        shown: dict[str, float | int | None] = {"block": block}
        for name, numbers in (("", routing.identity[linears]), ("gate_", routing.gate[linears])):
            shown[f"{name}prompt"] = _mean(numbers[:, : routing.prompt_tokens])
            shown[f"{name}answer"] = _mean(numbers[:, routing.prompt_tokens :])
        blocks.append(shown)
    return blocks


def _mean(values) -> float | None:
    return float(values.mean()) if values.numel() else None


def identity_view(routing: RoutingRecord) -> Table:
    """The share of each block's tokens that bypassed the LoRA experts."""
    table = Table(title=f"{routing.variant}: share that bypasses LoRA", title_justify="left", box=None)
    for column in ("block", "question", "answer", "gate"):
        table.add_column(column, no_wrap=True)
    for block in identity_by_block(routing):
        gates = ("–" if block[name] is None else f"{block[name]:.2f}" for name in ("gate_prompt", "gate_answer"))
        table.add_row(str(block["block"]), _bar(block["prompt"]), _bar(block["answer"]), " → ".join(gates))
    return table


def _bar(part: float | None) -> str:
    if part is None:
        return "–"
    full = round(part * BAR)
    return f"{'█' * full}{'░' * (BAR - full)} {share(part):>4}"


def drift_sentence(variants: Sequence[Variant], drift: Drift, taught: bool = False) -> str:
    """The base's answer, and how much less likely it is under the others.

    Args:
        variants: base and adapters.
        drift: how the adapters read the base's answer.
        taught: whether the question is like the training data, so that the adapters were meant to move.
    """
    labels = {variant.name: variant.label for variant in variants}
    ratios = [f"{likelihood(d.total)} for {labels[d.variant]}" for d in drift.variants]
    means = [f"{labels[d.variant]} {d.mean_kl:.3f}" for d in drift.variants]
    preface = (
        "This is like the training data, where the adapters moved towards what they were taught. " if taught else ""
    )
    return (
        f"{preface}The base's own answer is, compared with the base, {' and '.join(ratios)}. "
        f"Mean drift in nats per token: {', '.join(means)}."
    )
