# SPDX-License-Identifier: Apache-2.0
"""The values that go into the engine and come out of it: plain data, which can be used without the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..base.messages import Message
from ..baselines import KINDS as OTHER_METHODS
from ..method import AS_TRAINED, GateSetting
from ..peft_tools import identity_share
from .measure import Measure


# One of `ALL_KINDS`.
Kind = str
OWN_KINDS = {"base": "base model", "lora": "LoRA", "slim": "SLIM"}
ALL_KINDS = (*OWN_KINDS, *map(str.lower, OTHER_METHODS))

# waiting: in the queue for the model. reading: the model reads the prompt. writing: it writes the answer. done: see
# `finish_reason`.
State = Literal["waiting", "reading", "writing", "done"]
# end: the model ended its answer. length: max_new_tokens or the context is used up. stop_string: one of
# `Sampling.stop` was written. stopped: the caller stopped it. error: see `error`.
FinishReason = Literal["end", "length", "stop_string", "stopped", "error"]


def kind_name(kind: Kind) -> str:
    """A kind of variant, as people call it."""
    method = OTHER_METHODS.get(kind.upper())
    return OWN_KINDS[kind] if method is None else method.title


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy: always the most likely token.

    Attributes:
        temperature: 0 to 2.
        top_p: keep the most likely tokens that together have this probability; 1 keeps all.
        top_k: keep this many tokens; 0 keeps all.
        min_p: keep tokens at least this fraction as likely as the most likely one; 0 keeps all.
        repetition_penalty: a value above 1 makes tokens that have already occurred less likely.
        max_new_tokens: the maximum length of an answer, in tokens.
        stop: texts at which an answer ends; they are not part of it.
        seed: of the random numbers that all rows share.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Variant:
    """One way to answer: the base model, or the base with one adapter.

    Attributes:
        name: unique in the engine; "base" for the base.
        kind: one of `ALL_KINDS`.
        label: its name for people.
        parameters: of the adapter, or of the base.
        bytes: memory of these parameters.
        detail: a few words such as "rank 16, 8 + 2 experts, top-2".
        strength: the yield strength that it was trained with; None if it has no gate.
        measure: how it measures distances; None without routing.
        ends_with: the text with which it learned to end its answers, so that they end there; None if a token ends
            them.
    """

    name: str
    kind: Kind
    label: str
    parameters: int
    bytes: int
    detail: str = ""
    strength: float | None = None
    measure: Measure | None = None
    ends_with: str | None = None

    @property
    def quantiles(self) -> tuple[float, ...]:
        """Those whose distance it stores, ascending; empty if it has no gate."""
        return () if self.measure is None else self.measure.quantiles


@dataclass(frozen=True)
class Row:
    """One requested answer.

    Attributes:
        variant: the name of the variant that answers.
        messages: the conversation so far; the last message is the user's, or the beginning of the answer, which
            then goes on.
        routing: whether its routing is recorded.
        gate: how soon SLIM's gate closes. Other variants have no gate.
        text: plain text that the variant continues, or its token ids, instead of a conversation in the chat template;
            None for the messages.
        log_probs: for how many of the likeliest tokens log-probabilities are recorded at each step, beside that of
            the chosen token; None records none.
        prompt_log_probs: whether those of the prompt are recorded too.
    """

    variant: str
    messages: tuple[Message, ...]
    routing: bool = False
    gate: GateSetting = AS_TRAINED
    text: str | tuple[int, ...] | None = None
    log_probs: int | None = None
    prompt_log_probs: bool = False


class TokenLogProb(NamedTuple):
    """How likely the variant found a token, by its own logits, before temperature and penalties change them.

    Attributes:
        token: its id.
        log_prob: in nats; None for the first token of a prompt, before which there is nothing.
        likeliest: ids and log-probabilities of the likeliest tokens there, the best one first.
    """

    token: int
    log_prob: float | None
    likeliest: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class RowStep:
    """The state of one answer.

    Attributes:
        variant: the variant that answers.
        state: what is happening to it.
        text: the answer so far.
        tokens: how many tokens it has.
        prompt_tokens: how many tokens the conversation before it has.
        first_token_seconds: from the start of reading to the first token; None before it.
        tokens_per_second: of writing, from the second token on; None before.
        seconds: from the start of reading until now or the end.
        finish_reason: why it ended; None while it has not.
        error: the sentence for `finish_reason == "error"`.
        token_ids: the answer's tokens, without the one that ended it; what `Engine.drift` reads.
        log_probs: of these tokens, and of the one that ended it; empty where they were not asked for.
        prompt_log_probs: of the prompt's tokens, as far as they were read.
    """

    variant: str
    state: State = "waiting"
    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    first_token_seconds: float | None = None
    tokens_per_second: float | None = None
    seconds: float = 0.0
    finish_reason: FinishReason | None = None
    error: str | None = None
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[TokenLogProb, ...] = ()
    prompt_log_probs: tuple[TokenLogProb, ...] = ()


@dataclass(frozen=True)
class RoutingRecord:
    """The routing of each token of one row: L target Linears, T tokens of prompt and answer, E + I experts.

    The last token that the model chose is never read, so it has no routing. It is the last of `RowStep.token_ids`,
    unless it was an end token, or the answer was stopped before it was added: then all of these have a routing.

    Attributes:
        variant: whose routing it is.
        tokens: T texts of the tokens.
        prompt_tokens: how many of them are the prompt.
        modules: names of the L Linears.
        blocks: the decoder block of each of the L Linears, counted from 0.
        num_experts: E; the experts from E on are identity experts.
        weights: (L, T, E + I) float32.
        distance: (L, T) float32; 0 without clusters.
        cluster: (L, T) int64; -1 without clusters, as of a LoRA or a router of another method.
        gate: (L, T) float32 share of the LoRA experts' weights that the gate lets through; 1 without a gate.
            Where it is 0, the Linear's output is the base's, bit for bit.
        reference: (L, T) float32 distance up to which a token counts as like the training data; 0 without clusters.
        turn: index of the first token in the context of the latest user turn.
        complete: whether the adapter changes the model in these Linears alone. It does not if it has modules or rows
            of tokens of its own, which have no gate, or adapts the output head, whose routing is not recorded.
    """

    variant: str
    tokens: tuple[str, ...]
    prompt_tokens: int
    modules: tuple[str, ...]
    blocks: tuple[int, ...]
    num_experts: int
    weights: Tensor
    distance: Tensor
    cluster: Tensor
    gate: Tensor
    reference: Tensor
    turn: int = 0
    complete: bool = True

    @property
    def identity(self) -> Tensor:
        """(L, T) float32 share of each token that bypassed the LoRA experts."""
        return identity_share(self.weights, self.num_experts)

    @property
    def answer_identity(self) -> float | None:
        """Mean identity share of the answer's tokens over all Linears; None before it has a token."""
        shares = identity_share(self.weights[:, self.prompt_tokens :], self.num_experts)
        return float(shares.mean()) if shares.numel() else None

    @property
    def among_experts(self) -> bool:
        """Whether the router has only LoRA experts, which no token can bypass."""
        return self.num_experts == self.weights.shape[2] > 1 and bool((self.cluster[:, :1] < 0).all())


@dataclass(frozen=True)
class Step:
    """The state of a comparison at one moment.

    Attributes:
        rows: one for each row asked for, in that order.
        place: place in the queue; 0 once its turn has come.
        routing: the whole record so far, by row index, for rows that asked for it. It is filled in from time to time
            (see `Engine.answer`) and in the last step.
    """

    rows: tuple[RowStep, ...]
    place: int = 0
    routing: dict[int, RoutingRecord] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether every row has ended."""
        return all(row.state == "done" for row in self.rows)


@dataclass(frozen=True)
class Reading:
    """Which variants read the base's answer once all answers are finished, to measure their drift.

    Attributes:
        variants: names of the readers.
        messages: the conversation that the base answered.
        answer_ids: the tokens of its answer; empty if the base is one of the rows that answer now.
        gates: of each reader, as in `Row.gate`; empty to leave all as they were trained.
    """

    variants: tuple[str, ...]
    messages: tuple[Message, ...]
    answer_ids: tuple[int, ...] = ()
    gates: tuple[GateSetting, ...] = ()


@dataclass(frozen=True)
class Passage:
    """A text whose likelihood is wanted, and what comes before it.

    Attributes:
        before: a conversation up to where the answer begins, or plain text; empty if nothing comes before the words.
        words: the text whose likelihood is wanted.
    """

    before: tuple[Message, ...] | str
    words: str


@dataclass(frozen=True)
class Likelihood:
    """How V variants read the T tokens of a passage's words.

    Attributes:
        log_probs: (V, T) float32 log-probability of each token, in nats.
        greedy: (V, T) bool, whether it is the likeliest token there.
        kl: (V, T) float32 KL(base || variant) of the whole distribution at each token, in nats; None if the base is
            not among the variants.
        identity: for each variant that has a routing, by its index among the V: for each block, the mean identity
            share of what comes before the words. Empty if it was not asked for.
    """

    log_probs: Tensor
    greedy: Tensor
    kl: Tensor | None
    identity: dict[int, tuple[float, ...]]


@dataclass(frozen=True)
class VariantDrift:
    """How one variant reads the base's answer, T tokens.

    Attributes:
        variant: the variant that reads.
        log_ratio: (T,) float32, log p_base(token) - log p_variant(token), in nats: above 0 where the variant
            finds the token less likely.
        kl: (T,) float32, KL(base || variant) of the whole distribution at each token, in nats.
    """

    variant: str
    log_ratio: Tensor
    kl: Tensor

    @property
    def total(self) -> float:
        """log p_base(answer) - log p_variant(answer) of the whole answer, in nats."""
        return float(self.log_ratio.double().sum())

    @property
    def mean_kl(self) -> float:
        """Mean KL(base || variant) of a token, in nats."""
        return float(self.kl.double().mean())

    @property
    def times_less_likely(self) -> float:
        """p_base(answer) / p_variant(answer); inf where it overflows."""
        return float(torch.tensor(self.total, dtype=torch.float64).exp())


@dataclass(frozen=True)
class Drift:
    """How far the variants have moved from the base's own answer.

    Attributes:
        tokens: T texts of the base's answer's tokens.
        variants: one for each variant that read it.
    """

    tokens: tuple[str, ...]
    variants: tuple[VariantDrift, ...]


@dataclass(frozen=True)
class ModelInfo:
    """Information about the loaded model.

    Attributes:
        name: what people call the base: a name, its folder or its Hub id.
        parameters: of the base.
        bytes: memory of its weights.
        dtype: such as "float32", "bfloat16", "4-bit nf4".
        device: such as "cpu", "cuda:0".
        context_length: how many tokens a prompt and its answer may have together.
        blocks: number of decoder blocks.
        chat_template: whether the tokenizer brought one.
    """

    name: str
    parameters: int
    bytes: int
    dtype: str
    device: str
    context_length: int
    blocks: int
    chat_template: bool


@dataclass(frozen=True)
class MemoryUse:
    """Memory on the model's device, in bytes.

    Attributes:
        model: of the base's weights.
        adapters: by variant name.
        free: bytes that are free now; None if unknown.
        total: bytes of the device; None if unknown.
        kept: of kept rows, which a later prompt can go on from.
    """

    model: int
    adapters: dict[str, int]
    free: int | None
    total: int | None
    kept: int = 0
