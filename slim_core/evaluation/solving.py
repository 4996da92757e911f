# SPDX-License-Identifier: Apache-2.0
"""Some items of a task, solved by all variants as the rows of one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from ..base.errors import EngineError
from ..inference import GateSetting, Likelihood, Passage, Row, RowStep, Sampling, Step
from ..inference.types import Drift
from ..many import Respondent
from .rules import Rules
from .tasks import Item, Question, Request, Task, Text


# What is kept of one item, ready for JSON: "id", and either "answers", by column, or "error", a sentence.
Sample = dict[str, Any]
DIGITS = 6  # after the decimal point


class Solver(Protocol):
    """What solving needs from `slim_core.inference.Engine`."""

    def answer(self, rows: Sequence[Row], sampling: Sampling, *, keep: bool) -> Iterator[Step | Drift]: ...

    def score(
        self,
        passages: Sequence[Passage],
        variants: Sequence[str],
        gates: Sequence[GateSetting] = (),
        *,
        routing: bool = False,
    ) -> list[Likelihood]: ...


def solve(engine: Solver, respondents: Sequence[Respondent], task: Task, ids: Sequence[int]) -> list[Sample]:
    """Solve items. An item that cannot be solved, for instance because it is too long, gets an error message; the
    others continue.

    Args:
        engine: with the variants.
        respondents: who solves them; the base first, against which KL is measured.
        task: whose items they are.
        ids: their places in it.

    Raises:
        EngineError: if the model fails at every one of several items.
    """
    try:
        return _solved(engine, respondents, task, ids)
    except EngineError as error:
        if len(ids) == 1:
            return [{"id": ids[0], "error": str(error)}]
    samples = [sample for item_id in ids for sample in solve(engine, respondents, task, [item_id])]
    sentences = {sample.get("error") for sample in samples}
    if None not in sentences and len(sentences) == 1:
        raise EngineError(str(sentences.pop()))
    return samples


def _solved(engine: Solver, respondents: Sequence[Respondent], task: Task, ids: Sequence[int]) -> list[Sample]:
    items = [task.items[item_id] for item_id in ids]
    requests = [item for item in items if isinstance(item, Request)]
    samples = _written(engine, respondents, task, requests) if requests else _read(engine, respondents, task, items)
    return [{"id": item_id} | sample for item_id, sample in zip(ids, samples, strict=True)]


def _names(respondents: Sequence[Respondent]) -> tuple[list[str], list[GateSetting]]:
    return [r.variant.name for r in respondents], [r.gate for r in respondents]


def _known(read: Likelihood, place: int) -> dict[str, Any]:
    """Further values of a likelihood: KL(base || variant) per token, and the shares past LoRA by block."""
    values: dict[str, Any] = {}
    if read.kl is not None:
        values["kl"] = _round(float(read.kl[place].double().mean()))
    if place in read.identity:
        values["identity"] = [_round(share) for share in read.identity[place]]
    return values


def _round(number: float) -> float:
    return round(number, DIGITS)


# -- read --------------------------------------------------------------------------------------------------------


def _read(engine: Solver, respondents: Sequence[Respondent], task: Task, items: Sequence[Item]) -> list[Sample]:
    """Questions by the likelihood of their options, and texts by their loss."""
    passages = [passage for item in items for passage in _passages(item)]
    reads = engine.score(passages, *_names(respondents), routing=True)
    samples, at = [], 0
    for item in items:
        item_reads = reads[at : at + len(_passages(item))]
        at += len(item_reads)
        make = _chosen if isinstance(item, Question) else _lost
        samples.append({"answers": {r.column: make(task, item, item_reads, i) for i, r in enumerate(respondents)}})
    return samples


def _passages(item: Item) -> tuple[Passage, ...]:
    if isinstance(item, Question):
        return item.options
    assert isinstance(item, Text)  # requests are written
    return (item.passage,)


def _chosen(task: Task, item: Item, reads: Sequence[Likelihood], place: int) -> dict[str, Any]:
    """The option that a variant finds most likely, and the values of each option."""
    assert isinstance(item, Question)
    sums = [float(read.log_probs[place].double().sum()) for read in reads]
    scores = [total / max(1, len(text)) for total, text in zip(sums, item.shown, strict=True)]
    ranked = scores if task.metric == "acc_norm" else sums
    chosen = max(range(len(ranked)), key=ranked.__getitem__)
    return {
        "mark": float(chosen in item.right),
        "chosen": chosen,
        "log_probs": [_round(total) for total in sums],
        "greedy": [bool(read.greedy[place].all()) for read in reads],
        **_known(reads[item.right[0]], place),
    }


def _lost(task: Task, item: Item, reads: Sequence[Likelihood], place: int) -> dict[str, Any]:
    (read,) = reads
    loss = -float(read.log_probs[place].double().mean())
    return {"loss": _round(loss), "tokens": read.log_probs.shape[1], **_known(read, place)}


# -- written -----------------------------------------------------------------------------------------------------


def _written(engine: Solver, respondents: Sequence[Respondent], task: Task, items: Sequence[Request]) -> list[Sample]:
    """Greedy answers; then all variants read the base's own, whose KL measures how far they are from it."""
    rows = [_row(r, item) for item in items for r in respondents]
    sampling = Sampling(max_new_tokens=task.max_new_tokens, stop=task.until)
    *_, step = engine.answer(rows, sampling, keep=False)
    assert isinstance(step, Step)  # no drift was asked for
    samples = []
    for number, item in enumerate(items):
        steps = step.rows[number * len(respondents) :][: len(respondents)]
        errors = [row.error for row in steps if row.error is not None]
        if errors:
            raise EngineError(errors[0])
        answers = {r.column: _answer(item, row) for r, row in zip(respondents, steps, strict=True)}
        read = _reading(engine, respondents, Passage(item.prompt, steps[0].text))
        if read is not None:
            for place, r in enumerate(respondents):
                answers[r.column] |= _known(read, place)
        samples.append({"answers": answers})
    return samples


def _reading(engine: Solver, respondents: Sequence[Respondent], passage: Passage) -> Likelihood | None:
    """How all variants read the base's own answer; None if it is empty or too long."""
    if not passage.words.strip():
        return None
    try:
        return engine.score([passage], *_names(respondents), routing=True)[0]
    except EngineError:
        # Read as text it may have more tokens than were generated. The answers still count.
        return None


def _row(respondent: Respondent, item: Request) -> Row:
    name, gate = respondent.variant.name, respondent.gate
    if isinstance(item.prompt, str):
        return Row(name, (), gate=gate, text=item.prompt)
    return Row(name, item.prompt, gate=gate)


def _answer(item: Request, row: RowStep) -> dict[str, Any]:
    expected = item.expected
    # What goes on from plain text often begins with the space behind it.
    text = row.text.removeprefix(" ")
    answer: dict[str, Any] = {"mark": expected.mark(text), "text": text, "tokens": row.tokens}
    if isinstance(expected, Rules):
        return answer | {"rules": [rule.holds(text) for rule in expected.rules]}
    return answer | ({"taken": expected.taken(text)} if expected.filters else {})
