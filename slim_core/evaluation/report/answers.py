# SPDX-License-Identifier: Apache-2.0
"""Answers to prompts that have no right ones, side by side, for people to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from ...base.formatting import share
from ...many import PastLora, PromptAnswer, PromptResult, mean_drift
from .markup import page, paragraph, strip, table


VERDICTS = {"like": "like the training data", "unlike": "unlike the training data", "mixed": "partly like it"}


def answers_page(results: Sequence[PromptResult], labels: Mapping[str, str]) -> str:
    """A page of answers.

    Args:
        results: what was answered.
        labels: the variants' names for people, by column.
    """
    return page("Answers side by side", _parts(results, labels))


def _parts(results: Sequence[PromptResult], labels: Mapping[str, str]) -> Iterator[str]:
    yield paragraph(
        "Drift is KL(base ‖ variant) in nats, the mean over the tokens of the base's own answer. Past LoRA is the "
        "share of the answer's tokens that went past the LoRA experts. Below each table, blue tokens went past them "
        "and orange ones through them; the shares by block are those of the last turn and its answer."
    )
    groups = mean_drift(results)
    if groups:
        by_column = list(dict.fromkeys(label for group in groups for label in group.means))
        yield table(
            ("prompts", "n", *(f"{label}: mean drift" for label in by_column)),
            [
                (
                    "all" if group.kind is None else VERDICTS[group.kind],
                    str(group.prompts),
                    *(f"{group.means[label]:.3f}" if label in group.means else "" for label in by_column),
                )
                for group in groups
            ],
        )
    for result in results:
        yield f"<h2>{result.number}. {escape(result.place)}</h2><pre>{escape(result.prompt)}</pre>"
        if result.error is not None:
            yield paragraph(result.error)
            continue
        yield table(
            ("variant", "answer", "drift", "past LoRA", "prompt"),
            [(labels[answer.column], *_cells(answer)) for answer in result.answers],
            text=(1,),
        )
        for answer in result.answers:
            if answer.past_lora is not None:
                yield from _routing(labels[answer.column], answer.past_lora)


def _routing(label: str, past: PastLora) -> Iterator[str]:
    """Each token in its colour, the answer's below the prompt's."""
    yield paragraph(f"{label}, past LoRA by block: {' '.join(share(block) for block in past.by_block)}", "dim")
    pairs = list(zip(past.tokens, past.by_token, strict=True))
    for part in (pairs[: past.prompt_tokens], pairs[past.prompt_tokens :]):
        if part:
            yield strip([(text, by_token, share(by_token)) for text, by_token in part])


def _cells(answer: PromptAnswer) -> tuple[str, ...]:
    return (
        answer.text if answer.error is None else answer.error,
        "" if answer.mean_kl is None else f"{answer.mean_kl:.3f}",
        "" if answer.identity is None else share(answer.identity),
        "" if answer.verdict is None else VERDICTS[answer.verdict.kind],
    )
