# SPDX-License-Identifier: Apache-2.0
"""A table of the answers to many prompts for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from ..base.formatting import likelihood, share
from ..many import PromptAnswer, PromptResult, Respondent, mean_drift
from ..outside.errors import printable


KINDS = {"like": "like the training data", "unlike": "unlike the training data", "mixed": "partly like it"}


def results_view(results: Sequence[PromptResult], askers: Sequence[Respondent]) -> Table:
    """One line per prompt: the prompt, and each answer with its measurements."""
    table = Table(expand=True, show_lines=True)
    table.add_column("", justify="right")
    table.add_column("prompt", ratio=2, overflow="fold")
    for asker in askers:
        table.add_column(Text(printable(asker.variant.label)), ratio=3, overflow="fold")
    for result in results:
        answers = {answer.column: answer for answer in result.answers}
        if result.error is not None:
            cells = [Text(_lines(result.error), style="red"), *[Text("")] * (len(askers) - 1)]
        else:
            cells = [_cell(answers[asker.column]) for asker in askers]
        table.add_row(str(result.number), Text(_lines(result.prompt)), *cells)
    return table


def _cell(answer: PromptAnswer) -> Text:
    if answer.error is not None:
        return Text(_lines(answer.error), style="red")
    known = known_of(answer)
    return Text.assemble(_lines(answer.text), *((("\n" + line), "dim") for line in known))


def known_of(answer: PromptAnswer) -> list[str]:
    """Verdict, identity share and drift in a few words each."""
    facts = []
    if answer.verdict is not None:
        facts.append("gate forced open" if answer.gate.strength == 0 else KINDS[answer.verdict.kind])
    if answer.identity is not None:
        facts.append(f"{share(answer.identity)} past LoRA")
    if answer.log_ratio is not None and answer.mean_kl is not None:
        facts.append(f"base's answer {likelihood(answer.log_ratio)}, {answer.mean_kl:.3f} nats per token")
    return facts


def _lines(text: str) -> str:
    """A text with its line breaks, but nothing else that moves the cursor."""
    return "\n".join(map(printable, text.split("\n")))


def summary(results: Sequence[PromptResult]) -> Iterator[str]:
    """The mean drift by the gate's verdict, and how many prompts failed."""
    for group in mean_drift(results):
        means = ", ".join(f"{printable(label)} {mean:.3f}" for label, mean in group.means.items())
        kind = f", {KINDS[group.kind]}" if group.kind else ""
        prompts = f"{group.prompts} prompt{'' if group.prompts == 1 else 's'}"
        yield f"{prompts}{kind}: mean drift in nats per token: {means}."
    failed = sum(result.failed for result in results)
    if failed:
        yield f"{failed} prompt{'' if failed == 1 else 's'} failed."
