# SPDX-License-Identifier: Apache-2.0
"""The engine as the app uses it: one job answers a prompt by all variants and then measures their drift."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ..adapters import Adapter, BaseShapes, StoreLimits
from ..base.messages import Message
from ..evaluation.run import Unit
from ..evaluation.solving import Sample, solve
from ..inference import BaseSwitch, EngineError, GateSetting
from ..inference.stops import Stops
from ..inference.types import (
    Drift,
    Likelihood,
    MemoryUse,
    ModelInfo,
    Passage,
    Reading,
    RoutingRecord,
    Row,
    Sampling,
    Step,
    Variant,
)
from ..many import Respondent
from ..serving.places import Places
from .limits import LimitError
from .state.choices import NOT_ALLOWED, Choices
from .state.visitor_adapters import VisitorAdapters
from .zero_gpu import on_zero_gpu


class AppEngine(Protocol):
    """What the app needs from `slim_core.inference.Engine`; tests use a scripted engine."""

    info: ModelInfo
    variants: tuple[Variant, ...]
    shapes: BaseShapes

    def attach(self, adapter: Adapter, *, name: str, label: str) -> Variant: ...

    def detach(self, name: str) -> None: ...

    def answer(
        self,
        rows: Sequence[Row],
        sampling: Sampling,
        stops: Stops | None = None,
        *,
        batched: bool = True,
        reading: Reading | None = None,
        visitor: Hashable = None,
        keep: bool = True,
    ) -> Generator[Step | Drift, None, None]: ...

    def score(
        self,
        passages: Sequence[Passage],
        variants: Sequence[str],
        gates: Sequence[GateSetting] = (),
        *,
        routing: bool = False,
    ) -> list[Likelihood]: ...

    def count_tokens(self, prompt: Sequence[Message] | str | Sequence[int]) -> int: ...

    def token_texts(self, ids: Sequence[int]) -> tuple[str, ...]: ...

    def peek(self, row: Row) -> RoutingRecord | None: ...

    def memory(self) -> MemoryUse: ...


@dataclass(frozen=True)
class Job:
    """One piece of work for the model.

    Attributes:
        rows: the answers that are wanted.
        sampling: how their tokens are chosen.
        batched: whether all are written at once, or one after the other.
        reading: which variants read the base's answer afterwards.
        adapters: the visitor's adapters that it needs, by the names of their variants.
        visitor: who asks, where one may ask for several at once; see `Engine.answer`.
        keep: whether the rows of these answers are kept for later prompts.
    """

    rows: tuple[Row, ...]
    sampling: Sampling
    batched: bool = True
    reading: Reading | None = None
    adapters: tuple[tuple[str, Adapter], ...] = ()
    visitor: str | None = None
    keep: bool = True


@dataclass(frozen=True)
class SolvingJob:
    """Items of a task that variants are to solve.

    Attributes:
        unit: which items.
        respondents: who solves them, the base first.
        adapters: the visitor's adapters that it needs, by the names of their variants.
    """

    unit: Unit
    respondents: tuple[Respondent, ...]
    adapters: tuple[tuple[str, Adapter], ...] = ()


class Backend:
    """The engine, and how to call it on this machine.

    Args:
        engine: the model with its variants.
        gpu: a decorator that assigns a GPU for one call, such as `spaces.GPU`; None if the model runs here.
        limits: how many adapters of visitors are held.
        switch: changes the engine; None if it cannot be changed.
        choices: what visitors may change it to.
        places: maximum number of prompts, of visitors and programs, that are running or queued; a quarter more for
            visitors who have none.

    Attributes:
        engine: the model with its variants. It may be another one the next time.
        variants: the app's own: the base first. Visitors' adapters are not among them.
        visitor_adapters: visitors' adapters.
    """

    def __init__(
        self,
        engine: AppEngine,
        gpu: Callable[..., Any] | None = None,
        limits: StoreLimits | None = None,
        switch: BaseSwitch | None = None,
        choices: Choices | None = None,
        places: int = 64,
    ) -> None:
        self.engine = engine
        self.places = places
        self._places = Places(places)
        self.variants = engine.variants
        self.zero_gpu = gpu is not None
        self.visitor_adapters = VisitorAdapters(engine, limits, zero_gpu=self.zero_gpu)
        self.switch = switch
        self.choices = choices or Choices({}, fixed=NOT_ALLOWED)
        self._latest: tuple[AppEngine, bool] | None = None
        self._first = switch.choice if switch is not None else None
        if switch is not None:
            switch.on_switch = self._use_engine
        # On ZeroGPU the engine stays.
        self._zero_gpu = on_zero_gpu(gpu, partial(run_job, engine), seconds_of) if gpu else None
        self._zero_gpu_solving = on_zero_gpu(gpu, partial(solve_job, engine), seconds_of_solving) if gpu else None

    def run(self, job: Job, stops: Stops) -> Generator[Step | Drift, None, None]:
        """Steps of the answers, then at most one drift."""
        return self._zero_gpu(job, stops) if self._zero_gpu else run_job(self.engine, job, stops)

    def solve(self, job: SolvingJob) -> list[Sample]:
        """Solve some items of a task; returns when they are solved.

        Raises:
            EngineError: if the model fails.
        """
        (samples,) = self._zero_gpu_solving(job) if self._zero_gpu_solving else solve_job(self.engine, job)
        return samples

    def enter(self, visitor: str | None = None) -> None:
        """Take one of the places; it must be given back with `leave`.

        Args:
            visitor: whose it is; None for one who has no other.

        Raises:
            LimitError: if there is none.
        """
        if not self._places.take(visitor):
            raise LimitError(
                f"{self.places} prompts are running or queued, and no more can be taken. Try again in a minute."
            )

    def leave(self, visitor: str | None = None) -> None:
        """Give it back."""
        self._places.give_back(visitor)

    def _use_engine(self, engine: AppEngine) -> None:
        self.engine = engine
        self.variants = engine.variants
        # After the engine has been replaced: removing the old base's adapters waits for nobody.
        self.visitor_adapters.move(engine)

    @property
    def reads_latest_only(self) -> bool:
        """Whether the base's chat template leaves out all but the latest prompt; determined once per base."""
        engine = self.engine
        if self._latest is None or self._latest[0] is not engine:
            self._latest = (engine, _reads_latest_only(engine))
        return self._latest[1]

    @property
    def generation(self) -> int:
        """Number of bases loaded so far."""
        return self.switch.generation if self.switch is not None else 0

    @property
    def is_first(self) -> bool:
        """Whether the base is the one that the app started with, whatever its precision."""
        return self.switch is None or self._first is None or self.switch.choice.base == self._first.base

    @property
    def base(self) -> Variant:
        """The base model's variant."""
        return self.variants[0]

    @property
    def adapters(self) -> tuple[Variant, ...]:
        """The app's own adapters."""
        return self.variants[1:]


def _reads_latest_only(engine: AppEngine) -> bool:
    last = Message("user", "And a third?")
    earlier = (Message("user", "One word."), Message("assistant", "Two words."))
    try:
        return engine.count_tokens((*earlier, last)) == engine.count_tokens((last,))
    except EngineError:
        return False


def seconds_of(job: Job, stops: Stops) -> int:
    """How many seconds of GPU time to ask for. Asking for less gives visitors a better place in the queue."""
    return min(120, 20 + job.sampling.max_new_tokens * len(job.rows) // 50)


def run_job(engine: AppEngine, job: Job, stops: Stops) -> Generator[Step | Drift, None, None]:
    """Answer, then let every variant read the base's answer. One call, so that ZeroGPU assigns a GPU once."""
    with _brought(engine, job.adapters):
        options: dict[str, Any] = {
            "batched": job.batched,
            "reading": job.reading,
            "visitor": job.visitor,
            "keep": job.keep,
        }
        yield from engine.answer(job.rows, job.sampling, stops, **options)


def seconds_of_solving(job: SolvingJob) -> int:
    """How many seconds of GPU time to ask for."""
    return min(120, 20 + job.unit.task.max_new_tokens * len(job.unit.ids) * len(job.respondents) // 50)


def solve_job(engine: AppEngine, job: SolvingJob) -> Iterator[list[Sample]]:
    """Solve the items; the only value is all of them."""
    with _brought(engine, job.adapters):
        yield solve(engine, job.respondents, job.unit.task, job.unit.ids)


@contextmanager
def _brought(engine: AppEngine, adapters: tuple[tuple[str, Adapter], ...]) -> Iterator[None]:
    """Attach missing adapters for the duration of the context: a ZeroGPU process starts with only the app's own."""
    attached = {variant.name for variant in engine.variants}
    brought: list[str] = []
    try:
        for name, adapter in adapters:
            if name not in attached:
                engine.attach(adapter, name=name, label=adapter.label)
                brought.append(name)
        yield
    finally:
        for name in brought:
            engine.detach(name)
