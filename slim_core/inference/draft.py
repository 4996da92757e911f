# SPDX-License-Identifier: Apache-2.0
"""Answers that are being written, and the work that one caller asked for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..base.errors import EngineError
from ..method import AS_TRAINED, GateSetting
from ..outside.errors import first_line
from ..peft_tools import RowRouting
from .detokenise import AnswerText
from .drift import AnswerReading, DriftTensors
from .sampling import Sampler
from .start import Start
from .types import FinishReason, Row, RowStep, Sampling, State, Step, TokenLogProb


# Beyond every vocabulary, which a repetition penalty takes for no token.
NO_TOKEN = 2**40


@dataclass(eq=False)
class Draft:
    """One answer that is being written.

    Attributes:
        index: of its row among those that were asked for.
        peft_name: of its variant, in `adapter_names`.
        prompt: token ids of the conversation.
        limit: maximum number of its tokens.
        text: its text so far.
        routing: whether its routing is recorded.
        gate: how soon its gate closes.
        likeliest: how many of the likeliest alternatives are recorded with each token; None records no
            log-probabilities.
        scores_prompt: whether log-probabilities of the prompt's tokens are recorded too.
        ids: its tokens.
        log_probs: of its tokens, and of the one that ended it.
        prompt_log_probs: of the prompt's tokens, as far as it was read.
        records: its routing so far, in consecutive pieces.
        start: the kept row that reading continues from; None reads the whole prompt.
    """

    index: int
    peft_name: str
    prompt: list[int]
    limit: int
    text: AnswerText
    routing: bool = False
    gate: GateSetting = AS_TRAINED
    likeliest: int | None = None
    scores_prompt: bool = False
    ids: list[int] = field(default_factory=list)
    log_probs: list[TokenLogProb] = field(default_factory=list)
    prompt_log_probs: list[TokenLogProb] = field(default_factory=list)
    records: list[RowRouting] = field(default_factory=list)
    start: Start | None = None
    state: State = "waiting"
    started: float = 0.0
    first: float | None = None
    latest: float = 0.0
    finish_reason: FinishReason | None = None
    error: str | None = None
    _read: Tensor | None = None

    def begin(self) -> None:
        self.state = "reading"
        self.started = self.latest = time.perf_counter()

    def end(self, reason: FinishReason, error: str | None = None) -> None:
        self.text.finish()
        self.state, self.finish_reason, self.error = "done", reason, error
        if self.started:
            self.latest = time.perf_counter()

    @property
    def done(self) -> bool:
        return self.state == "done"

    def seen(self, device: torch.device) -> Tensor:
        """(S,) int64 tokens of prompt and answer."""
        if self._read is None:
            self._read = torch.tensor(self.prompt, device=device)
        return torch.cat([self._read, torch.tensor(self.ids, dtype=torch.int64, device=device)])

    def shown(self, variant: str) -> RowStep:
        """The state of the answer, as its caller sees it."""
        now = time.perf_counter() if self.state in ("reading", "writing") else self.latest
        writing = 0.0 if self.first is None else self.latest - self.first
        return RowStep(
            variant=variant,
            state=self.state,
            text=self.text.text,
            tokens=len(self.ids),
            prompt_tokens=len(self.prompt),
            first_token_seconds=None if self.first is None else self.first - self.started,
            tokens_per_second=(len(self.ids) - 1) / writing if len(self.ids) > 1 and writing > 0 else None,
            seconds=now - self.started,
            finish_reason=self.finish_reason,
            error=self.error,
            token_ids=tuple(self.ids),
            log_probs=tuple(self.log_probs),
            prompt_log_probs=tuple(self.prompt_log_probs),
        )

    def take(self, token: int, end_tokens: frozenset[int], log_prob: TokenLogProb | None = None) -> None:
        """Add the token that was chosen."""
        if log_prob is not None:
            self.log_probs.append(log_prob)
        self.latest = time.perf_counter()
        if self.first is None:
            self.first, self.state = self.latest, "writing"
        if token in end_tokens:
            self.end("end")
            return
        self.ids.append(token)
        if self.text.push(token):
            self.end("stop_string")
        elif len(self.ids) >= self.limit:
            self.end("length")


def waiting_step(rows: Sequence[Row], stopped: Callable[[int], bool], place: int) -> Step:
    """The state of rows that wait in the queue. It is done if all of them were stopped."""
    states = tuple(
        RowStep(row.variant, "done", finish_reason="stopped") if stopped(index) else RowStep(row.variant)
        for index, row in enumerate(rows)
    )
    return Step(states, place=0 if all(state.state == "done" for state in states) else place)


class Work:
    """What one caller has asked for: answers, and then a reading of one of them.

    The scheduler changes it, and the caller reads it, both under the scheduler's lock.

    Args:
        drafts: the answers; those with an error are done already.
        sampling: how tokens are chosen.
        end_tokens: tokens that end an answer.
        stopped: whether a person has stopped the row of that index.
        batched: whether all are written at once, or one after the other.
        routing_every: seconds between readings of the routing records.
        keep: whether rows that have ended are kept for prompts that go on from them.

    Attributes:
        writing: the drafts that are being written now.
        reading: the answer that variants read once all answers are complete.
        drift: its result; None if it was stopped.
        changed: whether something changed since the caller last looked.
        new_routing: whether that includes routing records.
        failure: the exception, if the model failed.
    """

    def __init__(
        self,
        drafts: Sequence[Draft],
        sampling: Sampling,
        end_tokens: frozenset[int] = frozenset(),
        stopped: Callable[[int], bool] = lambda row: False,
        batched: bool = True,
        routing_every: float = 0.4,
        keep: bool = True,
    ) -> None:
        self.drafts, self.end_tokens, self.stopped, self.keep = drafts, end_tokens, stopped, keep
        self._sampling, self._every = sampling, routing_every
        self.sampler = Sampler(sampling)
        live = [draft for draft in drafts if not draft.done]
        self._waiting = deque([live] if batched else [[draft] for draft in live])
        self.writing: list[Draft] = []
        self.reading: AnswerReading | None = None
        self.drift: DriftTensors | None = None
        self.changed = self.new_routing = False
        self.failure: BaseException | None = None
        self._read_at = 0.0

    @property
    def rows(self) -> int:
        """How many answers may be written at once."""
        return max((len(group) for group in (*self._waiting, self.writing)), default=0)

    @property
    def columns(self) -> int:
        """The most tokens that one of its rows may take in the cache."""
        return max((len(draft.prompt) + draft.limit for draft in self.drafts if not draft.done), default=0)

    @property
    def written(self) -> bool:
        """Whether all answers are complete."""
        return all(draft.done for draft in self.drafts)

    def begin(self) -> bool:
        """Begin the next drafts unless others are being written. Returns whether there were any, even if stopped."""
        if self.writing or not self._waiting:
            return False
        self._end_stopped()
        while self._waiting and not self.writing:
            self.writing = [draft for draft in self._waiting.popleft() if not draft.done]
        self.sampler, self._read_at = Sampler(self._sampling), 0.0
        for draft in self.writing:
            draft.begin()
        self.changed = True
        return True

    def settle(self) -> None:
        """After a forward: drop the drafts that are done, and end those that were stopped before they began."""
        self._end_stopped()
        self.writing = [draft for draft in self.writing if not draft.done]
        self.changed = True

    def _end_stopped(self) -> None:
        for group in self._waiting:
            for draft in group:
                if not draft.done and self.stopped(draft.index):
                    draft.end("stopped")

    def wants_routing(self, leaving: bool) -> bool:
        """Whether the routing records are to be read now; asked after each token."""
        now = time.perf_counter()
        # The clock begins with the first token.
        self._read_at = self._read_at or now
        if not leaving and now - self._read_at < self._every:
            return False
        self._read_at = now
        return True

    def recorded(self) -> list[int]:
        """Indices of the drafts that have routing records; the caller is about to read them."""
        self.new_routing = False
        return [draft.index for draft in self.drafts if draft.records]

    def check(self) -> None:
        """Raises EngineError if the model has failed."""
        if self.failure is not None:
            sentence = f"The model failed while it answered: {first_line(self.failure)}."
            raise EngineError(sentence) from self.failure

    def end(self, error: BaseException) -> None:
        """The model has failed."""
        self.failure, self.changed = error, True
        self.writing, self.reading = [], None
        self._waiting.clear()
