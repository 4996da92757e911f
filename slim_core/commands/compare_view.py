# SPDX-License-Identifier: Apache-2.0
"""Answers, routing and drift for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ..inference import Drift, Routing, RowStep, Variant
from ..inference.amounts import likelihood


BAR = 20
ENDINGS = {"length": "cut at the longest length", "stop_string": "stop text", "stopped": "stopped", "end": "complete"}


def answers_view(variants: Sequence[Variant], rows: Sequence[RowStep]) -> Table:
    """One column a variant: its name, its answer, how fast it was and why it ended."""
    table = Table(expand=True)
    for variant in variants:
        table.add_column(Text(f"{variant.label}\n{variant.detail}"), ratio=1, overflow="fold")
    table.add_row(*(Text(row.text) if row.error is None else Text(row.error, style="red") for row in rows))
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


def identity_by_block(routing: Routing) -> list[dict[str, float | int | None]]:
    """For each decoder block the mean share of the identity experts, over prompt and over answer."""
    identity = routing.weights[..., routing.num_experts :].sum(-1)
    found = []
    for block in sorted(set(routing.blocks)):
        of_block = identity[[i for i, b in enumerate(routing.blocks) if b == block]]
        prompt, answer = of_block[:, : routing.prompt_tokens], of_block[:, routing.prompt_tokens :]
        found.append({"block": block, "prompt": _mean(prompt), "answer": _mean(answer)})
    return found


def _mean(values) -> float | None:
    return float(values.mean()) if values.numel() else None


def identity_view(routing: Routing) -> Table:
    """How much of each block's tokens went past the LoRA experts."""
    table = Table(title=f"{routing.variant}: share that bypasses LoRA", title_justify="left", box=None)
    for column in ("block", "question", "answer"):
        table.add_column(column)
    for block in identity_by_block(routing):
        table.add_row(str(block["block"]), _bar(block["prompt"]), _bar(block["answer"]))
    return table


def _bar(share: float | None) -> str:
    if share is None:
        return "–"
    full = round(share * BAR)
    return f"{'█' * full}{'░' * (BAR - full)} {share:4.0%}"


def drift_sentence(variants: Sequence[Variant], drift: Drift) -> str:
    """What the base said, and how much less likely the others find it."""
    labels = {variant.name: variant.label for variant in variants}
    ratios = [f"{likelihood(float(d.log_ratio.double().sum()))} for {labels[d.variant]}" for d in drift.variants]
    means = [f"{labels[d.variant]} {float(d.kl.mean()):.3f}" for d in drift.variants]
    return (
        f"The base's own answer is, compared with the base, {' and '.join(ratios)}. "
        f"Mean drift in nats a token: {', '.join(means)}."
    )
