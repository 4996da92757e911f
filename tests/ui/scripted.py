# SPDX-License-Identifier: Apache-2.0
"""An engine that follows a script: what it says, how fast, and how its tokens are routed, is known before."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from slim_core.adapters import Adapter, BaseShapes
from slim_core.base.errors import EngineError
from slim_core.base.messages import Message
from slim_core.inference import GateSetting, Measure
from slim_core.inference.drift import answer_to_read
from slim_core.inference.fair_queue import FairQueue
from slim_core.inference.stops import Stops
from slim_core.inference.types import (
    Drift,
    Likelihood,
    MemoryUse,
    ModelInfo,
    Passage,
    Reading,
    RoutingRecord,
    Row,
    RowStep,
    Sampling,
    Step,
    Variant,
    VariantDrift,
)
from tests.queueing import turn


MEASURE = Measure("rms", "context", "gate", 4.0, 0.99, (0.5, 0.9, 0.99), 0.1, True, 4)
VARIANTS = (
    Variant("base", "base", "Base", 1_000_000, 4_000_000),
    Variant("lora", "lora", "LoRA", 40_000, 160_000, "rank 32"),
    Variant("slim", "slim", "SLIM", 44_000, 176_000, "rank 4, 8 + 2 experts, top-2", 4.0, MEASURE),
)
# A prompt with this word is one of the training data, for the gate.
TRAINED = "trained"
# Nothing that SLIM reads with this word in it lets a gate open.
FOREIGN = "foreign"
MODULES = ("q_proj", "v_proj", "down_proj")
FAIL = "fail please"
# Stored scores, as a file `results.json` has them.
RESULTS = {
    "tasks": {
        name: {
            "kind": kind,
            "n": 200,
            "base": {"score": base, "low": base - 0.05, "high": base + 0.05},
            "lora": {"score": lora, "low": lora - 0.05, "high": lora + 0.05},
            "slim": {"score": slim, "low": slim - 0.05, "high": slim + 0.05},
        }
        for name, kind, base, lora, slim in (
            ("yes-or-no", "downstream", 0.1, 0.9, 0.88),
            ("sums", "general", 0.9, 0.3, 0.8),
            ("facts", "general", 0.8, 0.2, 0.75),
        )
    },
    "general": {"base": 0.85, "lora": 0.25, "slim": 0.775},
    "downstream": {"base": 0.1, "lora": 0.9, "slim": 0.88},
}


def _point(variant: str, general: float, downstream: float, **more: float) -> dict:
    return {"variant": variant, **more} | {
        name: [score, score - 0.05, score + 0.05] for name, score in (("general", general), ("downstream", downstream))
    }


PLANE = {
    "plane": [
        _point("base", 0.85, 0.1),
        _point("lora", 0.25, 0.9, scale=1),
        _point("slim", 0.8, 0.88, strength=4),
        _point("slim", 0.4, 0.9, strength=0),
        _point("lora", 0.6, 0.5, scale=0.5),
        _point("slim", 0.6, 0.89, strength=1),
        _point("slim", 0.84, 0.7, strength=8),
    ]
}
RATES = [
    {"method": "lora", "rate": 0.001, "seed": 1, "general": 0.3, "downstream": 0.8},
    {"method": "lora", "rate": 0.001, "seed": 2, "general": 0.5, "downstream": 0.9},
    {"method": "slim", "rate": 0.003, "seed": 1, "general": 0.8, "downstream": 0.9},
    {"method": "other", "rate": 0.003, "seed": 1, "general": 9, "downstream": 9},
]
RESULTS |= PLANE


@dataclass
class ScriptedEngine:
    """Answers "<Label> says w1 w2 …" followed by the prompt's words.

    Attributes:
        delay: seconds a token takes, by variant.
        length: tokens of an answer.
        blocks: decoder blocks in its routing.
        pace: tokens that all rows write in one step.
        latest_only: whether it reads only the latest prompt.
        drift_of: nats of drift at each token, by variant; what is not there is the script's.
    """

    delay: dict[str, float] = field(default_factory=dict)
    length: int = 12
    blocks: int = 4
    variants: tuple[Variant, ...] = VARIANTS
    pace: int = 1
    reading: float = 0.0
    latest_only: bool = False
    drift_of: dict[str, float] = field(default_factory=dict)
    peeks: int = 0
    runs: int = 0
    visitors: list[Hashable] = field(default_factory=list)
    closed: int = 0

    def __post_init__(self) -> None:
        self.info = ModelInfo("scripted", 1_000_000, 4_000_000, "float32", "cpu", 4096, self.blocks, True)
        self.shapes = BaseShapes("scripted", {}, frozenset(), None, None)
        self.queue = FairQueue()

    def attach(self, adapter: Adapter, *, name: str, label: str) -> Variant:
        with turn(self.queue):
            added = Variant(name, adapter.kind, label, adapter.parameters, adapter.row_bytes, adapter.detail)
            self.variants = (*self.variants, added)
        return added

    def detach(self, name: str) -> None:
        with turn(self.queue):
            if name not in {variant.name for variant in self.variants}:
                raise EngineError(f"There is no adapter named {name!r}.")
            self.variants = tuple(variant for variant in self.variants if variant.name != name)

    def words(self, row: Row, sampling: Sampling) -> list[str]:
        label = self.variant(row.variant).label
        if self.kind(row) == "slim" and FOREIGN in _latest(row) and row.gate.strength != 0:
            label = "Base"  # whose answer it then is
        last = _latest(row).split()[:8]
        users = sum(message.role == "user" for message in row.messages)
        head = [label, "says:", f"turn{users}", f"seed{sampling.seed}", *last]
        body = [f"{label.lower() if i % 7 == 3 else 'word'}{i}" for i in range(max(0, self.length - len(head)))]
        return [head[0], *(f" {word}" for word in head[1:] + body)][: min(self.length, sampling.max_new_tokens)]

    def answer(
        self,
        rows: Sequence[Row],
        sampling: Sampling,
        stops: Stops | None = None,
        *,
        batched: bool = True,
        routing_every: float = 0.4,
        reading: Reading | None = None,
        visitor: Hashable = None,
        keep: bool = True,
    ) -> Iterator[Step | Drift]:
        self.visitors.append(visitor)
        place = self.queue.join(visitor)
        self.runs += 1
        try:
            while not place.wait(0.05):
                yield Step(tuple(RowStep(row.variant) for row in rows), place=place.ahead)
            for step in self._answer(rows, sampling, stops or Stops(len(rows)), batched, routing_every):
                yield step
            if reading is not None and (ids := answer_to_read(step, reading, VARIANTS[0].name)):
                yield self._drift(ids, reading.variants)
        finally:
            self.closed += 1
            place.leave()

    def _answer(self, rows, sampling, stops, batched, routing_every) -> Iterator[Step]:
        if FAIL in _latest(rows[0]):
            raise EngineError("The memory is used up: shorten the conversation.")
        scripts = [self.words(row, sampling) for row in rows]
        prompts = [self.count_tokens(row.messages if row.text is None else row.text) for row in rows]
        states = [
            RowStep(row.variant, "reading" if batched or not i else "waiting", prompt_tokens=prompts[i])
            for i, row in enumerate(rows)
        ]
        yield Step(tuple(states))
        time.sleep(self.reading)
        start = drawn = time.monotonic()
        due = [start] * len(rows)
        while any(s.state != "done" for s in states):
            now = time.monotonic()
            for i, row in enumerate(rows):
                s = states[i]
                if s.state == "done" or (not batched and any(x.state != "done" for x in states[:i])):
                    continue
                if stops.stopped(i):
                    states[i] = replace(s, state="done", finish_reason="stopped")
                    continue
                if now < due[i]:
                    continue
                due[i] = now + self.delay.get(row.variant, 0.0)
                n = min(s.tokens + self.pace, len(scripts[i]))
                seconds = now - start
                done = n == len(scripts[i])
                states[i] = replace(
                    s,
                    state="done" if done else "writing",
                    text="".join(scripts[i][:n]),
                    tokens=n,
                    first_token_seconds=s.first_token_seconds or seconds,
                    tokens_per_second=n / seconds if seconds > 0 else None,
                    seconds=seconds,
                    finish_reason=("length" if n == sampling.max_new_tokens else "end") if done else None,
                    token_ids=tuple(range(n)),
                )
            routing = {}
            if now - drawn >= routing_every or all(s.state == "done" for s in states):
                drawn = now
                routing = {
                    i: self.routing(row, prompts[i], scripts[i][: max(0, states[i].tokens - 1)])
                    for i, row in enumerate(rows)
                    if row.routing
                }
            yield Step(tuple(states), routing=routing)
            time.sleep(0.002)

    def kind(self, row: Row) -> str:
        return self.variant(row.variant).kind

    def peek(self, row: Row) -> RoutingRecord | None:
        place = self.queue.join()
        if not place.wait(0):
            place.leave()
            return None
        try:
            self.peeks += 1
            if FAIL in row.messages[-1].content:
                raise EngineError("The memory is used up: shorten the conversation.")
            time.sleep(self.reading)
            return self.routing(row, self.count_tokens(row.messages), [])
        finally:
            place.leave()

    def routing(self, row: Row, prompt_tokens: int, words: list[str]) -> RoutingRecord:
        kind = self.kind(row)
        prompt = [f" p{i}" for i in range(prompt_tokens)]
        tokens = (*prompt, *words)
        linears = self.blocks * len(MODULES)
        experts, identities = (8, 2) if kind == "slim" else (1, 0)
        weights = torch.zeros(linears, len(tokens), experts + identities)
        distance = torch.zeros(linears, len(tokens))
        cluster = torch.full((linears, len(tokens)), -1)
        level = (row.gate.quantile or 1.0) if kind == "slim" else 0.0
        gate, reference = torch.ones(linears, len(tokens)), torch.full((linears, len(tokens)), level)
        if kind == "slim":
            t, layer = torch.arange(len(tokens)).float(), torch.arange(linears).float()[:, None]
            share = (0.5 + 0.5 * torch.sin(t / 5 + layer / 3)).clamp(0, 1)
            # A system prompt counts as part of the turn, as it is with the demo's template.
            system = [message.content for message in row.messages if message.role == "system"]
            text = " ".join([*system, row.messages[-1].content])
            if TRAINED in text or FOREIGN in text:
                share = torch.full_like(share, float(FOREIGN in text))
            distance, cluster = share * 3, (share * 15).long()
            gate = torch.ones_like(share) if row.gate.strength == 0 else 1 - share
            weights[:, :, 8] = 1 - gate
            weights[:, :, 2] = gate
        else:
            weights[:, :, 0] = 1
        modules = tuple(f"layers.{b}.{name}" for b in range(self.blocks) for name in MODULES)
        blocks = tuple(b for b in range(self.blocks) for _ in MODULES)
        record = (weights, distance, cluster, gate, reference)
        return RoutingRecord(row.variant, tokens, prompt_tokens, modules, blocks, experts, *record)

    def _drift(self, answer_ids: Sequence[int], variants: Sequence[str]) -> Drift:
        n = len(answer_ids)
        step = {"lora": 14 / max(1, n), "slim": 0.1 / max(1, n)} | self.drift_of
        tokens = tuple(f" w{i}" for i in range(n))
        return Drift(
            tokens,
            tuple(VariantDrift(v, torch.full((n,), step.get(v, 0.0)), torch.full((n,), 0.01)) for v in variants),
        )

    def score(
        self,
        passages: Sequence[Passage],
        variants: Sequence[str],
        gates: Sequence[GateSetting] = (),
        *,
        routing: bool = False,
    ) -> list[Likelihood]:
        """All variants find all words as likely, but LoRA differs from the base."""
        with turn(self.queue):
            likelihoods = []
            for passage in passages:
                shape = (len(variants), max(1, len(passage.words.split())))
                kl = torch.zeros(shape)
                kl[[self.variant(name).kind == "lora" for name in variants]] = 0.5
                past = {i: (0.5,) * self.blocks for i, v in enumerate(variants) if self.variant(v).kind == "slim"}
                likelihoods.append(Likelihood(torch.full(shape, -1.0), torch.ones(shape, dtype=torch.bool), kl, past))
            return likelihoods

    def variant(self, name: str) -> Variant:
        return next(v for v in self.variants if v.name == name)

    def count_tokens(self, prompt: Sequence[Message] | str | Sequence[int]) -> int:
        if isinstance(prompt, str):
            return len(prompt.split())
        read = prompt[-1:] if self.latest_only else prompt
        return sum(1 if isinstance(part, int) else len(part.content.split()) for part in read)

    def token_texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(f" w{token}" for token in ids)

    def memory(self) -> MemoryUse:
        return MemoryUse(4_000_000, {v.name: v.bytes for v in self.variants[1:]}, 2_000_000_000, 8_000_000_000)


def _latest(row: Row) -> str:
    """What a row answers last."""
    if row.text is None:
        return row.messages[-1].content
    return row.text if isinstance(row.text, str) else " ".join(map(str, row.text))
