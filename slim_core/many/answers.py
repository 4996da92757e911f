# SPDX-License-Identifier: Apache-2.0
"""From a list of prompts to answers: what is asked, and what is kept of the engine's output."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..base.errors import EngineError
from ..base.messages import Message
from ..inference import AS_TRAINED, GateSetting
from ..inference.types import Drift, FinishReason, Kind, Reading, RoutingRecord, Row, Sampling, Step, Variant
from ..inference.verdict import Verdict, first_judged, verdict_of
from .prompts import ListedPrompt


Judged = Literal["like", "unlike", "mixed"]


@dataclass(frozen=True)
class Respondent:
    """A variant that is asked, with its column.

    Attributes:
        column: its name in tables, unique among the respondents; "base" for the base.
        variant: of the engine.
        gate: how soon its gate closes.
    """

    column: str
    variant: Variant
    gate: GateSetting = AS_TRAINED


def gate_name(gate: GateSetting) -> str:
    """A changed gate as part of a column's name, such as ", gate 2, quantile 0.9"; empty if it is as trained."""
    parts = [] if gate.strength is None else [f"{gate.strength:g}"]
    if gate.quantile is not None:
        parts.append(f"quantile {gate.quantile:g}")
    return f", gate {', '.join(parts)}" if parts else ""


@dataclass(frozen=True)
class PastLora:
    """How much of a prompt and its answer went past LoRA: shares from 0 to 1.

    Attributes:
        tokens: the texts of all tokens of the prompt, template included, and of the answer.
        prompt_tokens: how many of them are the prompt.
        by_token: for each token, the mean over all Linears.
        by_block: for each block with an adapter, from the first on, the mean over its Linears and over the tokens
            that count in the verdict: the last turn and its answer.
    """

    tokens: tuple[str, ...]
    prompt_tokens: int
    by_token: tuple[float, ...]
    by_block: tuple[float, ...]

    @classmethod
    def of(cls, record: RoutingRecord) -> PastLora:
        """The shares of a record."""
        shares = record.identity.double()
        judged = shares[:, first_judged(record) :].mean(dim=1)
        blocks = [judged[[b == block for b in record.blocks]].mean() for block in sorted(set(record.blocks))]
        return cls(record.tokens, record.prompt_tokens, _numbers(shares.mean(dim=0)), _numbers(blocks))


@dataclass(frozen=True)
class PromptAnswer:
    """One variant's answer to one prompt.

    Attributes:
        column: as `Respondent`.
        label: the variant's name for people.
        kind: what it is.
        text: the answer.
        tokens: how many it has.
        finish_reason: why it ended.
        error: a sentence, if there is no answer.
        identity: mean share of the answer's tokens, over all Linears, that went past LoRA; None for the base, and
            where there is no answer.
        gate: what was asked of its gate.
        verdict: how its gate judged the prompt; None without a gate.
        log_ratio: log p_base(base's answer) - log p_variant(the same), in nats; None for the base, and where it was
            not measured.
        mean_kl: KL(base || variant) in nats, mean over the tokens of the base's answer; None likewise.
        past_lora: the same as `identity`, by token and by block; None where nothing is recorded.
    """

    column: str
    label: str
    kind: Kind
    text: str
    tokens: int
    finish_reason: FinishReason | None
    error: str | None = None
    identity: float | None = None
    gate: GateSetting = AS_TRAINED
    verdict: Verdict | None = None
    log_ratio: float | None = None
    mean_kl: float | None = None
    past_lora: PastLora | None = None


@dataclass(frozen=True)
class PromptResult:
    """All answers to one prompt.

    Attributes:
        number: of the prompt, counted from 1.
        place: where it stands.
        messages: what was asked.
        answers: one for each respondent; empty if the prompt failed.
        error: a sentence on why it failed.
    """

    number: int
    place: str
    messages: tuple[Message, ...]
    answers: tuple[PromptAnswer, ...] = ()
    error: str | None = None

    @property
    def prompt(self) -> str:
        """The last message."""
        return self.messages[-1].content

    @property
    def failed(self) -> bool:
        """Whether all variants failed."""
        return all(answer.error is not None for answer in self.answers)


class PromptProgress:
    """Collects the answers to one prompt while it is processed.

    Args:
        number: of the prompt, counted from 1.
        listed: the prompt.
        system: for prompts without their own.
        askers: the variants that are asked.

    Attributes:
        rows: what the engine is asked for.
        reading: which variants read the base's answer afterwards; None for no reading.
        step: how far the answers are.
    """

    def __init__(self, number: int, listed: ListedPrompt, system: str, askers: Sequence[Respondent]) -> None:
        self._number, self._listed, self._askers = number, listed, tuple(askers)
        self.messages = listed.messages_with(system)
        # With a LoRA nothing bypasses it, so there is nothing to record.
        self.rows = tuple(
            Row(a.variant.name, self.messages, routing=a.variant.kind == "slim", gate=a.gate) for a in self._askers
        )
        readers = [a for a in self._askers if a.variant.kind != "base"]
        asks_base = len(readers) < len(self._askers)
        self.reading = (
            Reading(
                tuple(a.variant.name for a in readers),
                self.messages,
                gates=tuple(a.gate for a in readers),
            )
            if readers and asks_base
            else None
        )
        self.step: Step | None = None
        self._drift: Drift | None = None

    def take(self, item: Step | Drift) -> None:
        """Take the next item from the engine."""
        if isinstance(item, Drift):
            self._drift = item
        else:
            self.step = item

    def failed(self, sentence: str) -> PromptResult:
        """A result without answers, with the reason."""
        return PromptResult(self._number, self._listed.place, self.messages, error=sentence)

    def result(self) -> PromptResult:
        """The result, once the engine has finished."""
        assert self.step is not None  # its last one shows how every answer ended
        drifts = {drift.variant: drift for drift in self._drift.variants} if self._drift is not None else {}
        answers = []
        for index, (asker, row) in enumerate(zip(self._askers, self.step.rows, strict=True)):
            variant, record = asker.variant, self.step.routing.get(index)
            drift = drifts.get(variant.name)
            answers.append(
                PromptAnswer(
                    asker.column,
                    variant.label,
                    variant.kind,
                    row.text,
                    row.tokens,
                    row.finish_reason,
                    row.error,
                    identity=_identity(variant, row.tokens, record),
                    gate=asker.gate,
                    verdict=verdict_of(record) if record is not None and variant.strength is not None else None,
                    log_ratio=None if drift is None else drift.total,
                    mean_kl=None if drift is None else drift.mean_kl,
                    past_lora=None if record is None else PastLora.of(record),
                )
            )
        return PromptResult(self._number, self._listed.place, self.messages, tuple(answers))


def _numbers(values: Iterable[Tensor]) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)


def _identity(variant: Variant, tokens: int, record: RoutingRecord | None) -> float | None:
    if variant.kind == "lora":
        return 0.0 if tokens else None
    return None if record is None else record.answer_identity


def ask_all(
    prompts: Sequence[ListedPrompt],
    askers: Sequence[Respondent],
    system: str,
    answer: Callable[..., Generator[Step | Drift, None, None]],
    sampling: Sampling,
) -> Generator[PromptResult, None, None]:
    """Ask one prompt after another. Each joins the queue separately, so that others are answered in between.

    Args:
        prompts: what is asked.
        askers: the variants that are asked.
        system: for prompts that bring none of their own; empty for none.
        answer: the engine's `answer`.
        sampling: how tokens are chosen.

    Yields:
        A result for each prompt; one that fails has a sentence in place of answers, and the others are still asked.
    """
    for number, listed in enumerate(prompts, 1):
        gathering = PromptProgress(number, listed, system, askers)
        try:
            with closing(answer(gathering.rows, sampling, reading=gathering.reading)) as items:
                for item in items:
                    gathering.take(item)
            yield gathering.result()
        except EngineError as error:
            yield gathering.failed(str(error))


@dataclass(frozen=True)
class DriftGroup:
    """Mean drift of prompts with the same verdict.

    Attributes:
        kind: the verdict on them; None without a gate.
        prompts: how many.
        means: mean over the prompts of `PromptAnswer.mean_kl`, by label.
    """

    kind: Judged | None
    prompts: int
    means: dict[str, float]


def mean_drift(results: Sequence[PromptResult]) -> list[DriftGroup]:
    """Mean drift by verdict: like the training data, partly, unlike; prompts without any measured drift do not count.

    Where several have a gate, the last of them judges.
    """
    groups: dict[Judged | None, list[PromptResult]] = {"like": [], "mixed": [], "unlike": [], None: []}
    for result in results:
        if any(answer.mean_kl is not None for answer in result.answers):
            kinds = [answer.verdict.kind for answer in result.answers if answer.verdict is not None]
            groups[kinds[-1] if kinds else None].append(result)
    return [DriftGroup(kind, len(members), _means(members)) for kind, members in groups.items() if members]


def _means(members: Sequence[PromptResult]) -> dict[str, float]:
    values_by_label: dict[str, list[float]] = {}
    for result in members:
        for answer in result.answers:
            if answer.mean_kl is not None:
                values_by_label.setdefault(answer.label, []).append(answer.mean_kl)
    return {label: sum(values) / len(values) for label, values in values_by_label.items()}
