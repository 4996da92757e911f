# SPDX-License-Identifier: Apache-2.0
"""Switching the base: the new one is fetched first, then the old one is unloaded, then the new one is loaded."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import torch
from transformers import PreTrainedConfig

from ..base.choice import BaseChoice
from ..base.errors import EngineError
from ..base.estimate import MemoryNeed
from ..base.files import base_files
from ..base.formatting import count, size
from ..base.loading import LoadPlan, plan, read_prompts
from ..base.messages import Message
from ..base.shapes import BaseShapes
from ..method import GateSetting
from ..outside.errors import first_line
from .engine import Engine
from .loading import read_base
from .stops import Stops
from .types import Drift, Likelihood, MemoryUse, ModelInfo, Passage, Row, Sampling, Step, Variant
from .variants import BASE


# checking: its config and size. fetching: its files. ending: answers that are being written with the old base.
# loading: its weights. done, failed: see the sentence.
Stage = Literal["checking", "fetching", "ending", "loading", "done", "failed"]
log = logging.getLogger(__name__)
# Limits on a visitor's download: float32 weights with the output head stored twice, plus tokenizer and index.
BYTES_OF_A_PARAMETER, BYTES_OF_TEXTS = 8, 256 * 1024 * 1024


@dataclass(frozen=True)
class Progress:
    """Progress of a switch.

    Attributes:
        label: the new base's name.
        stage: what is happening.
        done: bytes that were fetched, or weights that were loaded.
        total: of how many; 0 if unknown.
        sentence: how it ended.
    """

    label: str
    stage: Stage
    done: int = 0
    total: int = 0
    sentence: str = ""

    @property
    def ended(self) -> bool:
        """Whether the switch has ended."""
        return self.stage in ("done", "failed")


class UnavailableEngine:
    """Takes the engine's place while no base is loaded, and raises an error that says so. Its properties are those of
    the last engine.
    """

    def __init__(self, last: Engine | UnavailableEngine, sentence: str) -> None:
        self.info: ModelInfo = last.info
        self.variants: tuple[Variant, ...] = last.variants
        self.shapes: BaseShapes = last.shapes
        self._sentence = sentence
        self.held: Mapping[torch.device, int] = {}

    def _refuse(self) -> NoReturn:
        raise EngineError(self._sentence)

    def answer(
        self, rows: Sequence[Row], sampling: Sampling, stops: Stops | None = None, **options: Any
    ) -> Generator[Step | Drift, None, None]:
        self._refuse()

    def score(
        self,
        passages: Sequence[Passage],
        variants: Sequence[str],
        gates: Sequence[GateSetting] = (),
        *,
        routing: bool = False,
    ) -> list[Likelihood]:
        self._refuse()

    def drift(self, messages: Sequence[Message], answer_ids: Sequence[int], variants: Sequence[str]) -> Drift:
        self._refuse()

    def count_tokens(self, prompt: Sequence[Message] | str | Sequence[int]) -> int:
        self._refuse()

    def token_texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        self._refuse()

    def peek(self, row: Row) -> NoReturn:
        self._refuse()

    def attach(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse()

    def detach(self, name: str) -> None:
        self._refuse()

    def memory(self) -> MemoryUse:
        return MemoryUse(0, {}, None, None)


class BaseSwitch:
    """Switches the base that all visitors share. Any thread may call any method.

    Args:
        engine: the engine that answers now.
        choice: what it was loaded from; what comes back when nothing else can be loaded.
        device: where bases go; None for CUDA or MPS where they are, else the CPU.
        on_switch: called with each engine that takes over, or the `UnavailableEngine` that stands in for it.

    Attributes:
        choice: the base that answers now, or that answered last.
        progress: how far the latest switch is; None before the first.
        generation: counts the bases that answered; conversations and adapters of earlier ones are gone.
    """

    def __init__(
        self,
        engine: Engine,
        choice: BaseChoice,
        device: str | torch.device | None = None,
        on_switch: Callable[[Engine | UnavailableEngine], None] = lambda engine: None,
    ) -> None:
        self.choice = self._first = choice
        self.progress: Progress | None = None
        self.generation = 0
        self._engine: Engine | UnavailableEngine = engine
        self._device, self.on_switch = device, on_switch
        self._kept_at_most = engine.kept_at_most
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def need(self, choice: BaseChoice) -> MemoryNeed:
        """The memory a base would need. Fetches at most its config.

        Raises:
            EngineError: if it cannot be had, cannot answer here, or does not fit.
        """
        with base_files(choice) as files:
            return self._plan(choice, files.config()).need

    def start(self, choice: BaseChoice) -> None:
        """Start a switch; see `progress`.

        Raises:
            EngineError: if another switch is on its way.
        """
        with self._lock:
            if self.progress is not None and not self.progress.ended:
                raise EngineError(f"{self.progress.label} is already being loaded; wait until it has finished.")
            self.progress = Progress(choice.label, "checking")
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(choice, self._stop), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Cancel the latest switch. Once the old base has been unloaded it can no longer be cancelled."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> Progress | None:
        """Wait until the latest switch has ended, at most `seconds`."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self.progress

    # -- in a separate thread ----------------------------------------------------------------------------------

    def _report(self, stage: Stage, done: int = 0, total: int = 0, sentence: str = "") -> None:
        assert self.progress is not None  # since `start`
        self.progress = replace(self.progress, stage=stage, done=done, total=total, sentence=sentence)

    def _run(self, choice: BaseChoice, stop: threading.Event) -> None:
        previous = self._engine
        failure = self._switch(choice, stop)
        if failure is None:
            self._report("done", sentence=f"The base is {choice.label} now; conversations and adapters were cleared.")
        elif self._engine is previous:
            self._report("failed", sentence=failure)
        else:
            self._report("failed", sentence=self._go_back(failure))

    def _switch(self, choice: BaseChoice, stop: threading.Event) -> str | None:
        """Returns why it failed. A partially loaded model is freed by then, with the traceback that referenced it."""
        try:
            with base_files(choice) as files:
                load_plan = self._plan(choice, files.config(stop))
                _check_amount(choice, files.size, load_plan.need)
                self._report("fetching", 0, files.size)
                folder = files.fetch(lambda done, total: self._report("fetching", done, total), stop)
                if stop.is_set():
                    raise EngineError(f"Loading {choice.label} was stopped.")
                # Before the old base is unloaded: the chat template is a program that may never end.
                prompts = read_prompts(choice, folder)
                self._release(choice)
                engine = read_base(choice, folder, load_plan, prompts, lambda *n: self._report("loading", *n))
                _try_out(engine, choice)
                self._come(choice, engine)
            return None
        except EngineError as error:
            return str(error)
        except BaseException as error:  # a panic of a library is not an Exception, and would end the thread
            log.exception("a base could not be loaded")
            return f"Loading {choice.label} failed: {first_line(error)}."

    def _plan(self, choice: BaseChoice, config: PreTrainedConfig) -> LoadPlan:
        # The memory that the old base will free, by device.
        return plan(choice, config, self._device, released=self._engine.held)

    def _release(self, choice: BaseChoice) -> None:
        self._report("ending")
        sentence = f"The base is being switched to {choice.label}; ask again when it is loaded."
        old = self._engine
        self._replace(UnavailableEngine(old, sentence))
        if isinstance(old, Engine):
            self._kept_at_most = old.kept_at_most
            old.close(sentence)
        self._report("loading")

    def _come(self, choice: BaseChoice, engine: Engine) -> None:
        engine.keep_at_most(self._kept_at_most)
        self.choice = choice
        self.generation += 1
        self._replace(engine)

    def _go_back(self, failure: str) -> str:
        """Load the previous base again, else the one the app started with. Returns the message."""
        # A visitor's base would have to be downloaded again, while nobody gets an answer.
        choices = [choice for choice in dict.fromkeys((self.choice, self._first)) if choice.operator]
        for choice in choices:
            next_failure = self._load_again(choice)
            if next_failure is None:
                return f"{failure} {choice.label} is loaded again; conversations and adapters were cleared."
            failure = f"{failure} {next_failure}"
        self._replace(UnavailableEngine(self._engine, f"No base is loaded. {failure}"))
        return failure

    def _load_again(self, choice: BaseChoice) -> str | None:
        """Returns why it failed."""
        self._report("loading")
        gc.collect()
        try:
            with base_files(choice) as files:
                folder = files.fetch(lambda done, total: None, threading.Event())
                load_plan = plan(choice, files.config(), self._device)
                self._come(choice, read_base(choice, folder, load_plan, read_prompts(choice, folder)))
        except BaseException as error:
            log.exception("the base of before could not be loaded again")
            return f"{choice.label} could not be loaded again: {first_line(error)}."
        return None

    def _replace(self, engine: Engine | UnavailableEngine) -> None:
        self._engine = engine
        self.on_switch(engine)


def _check_amount(choice: BaseChoice, fetched: int, need: MemoryNeed) -> None:
    """Check that a visitor's files are about as large as the weights their config describes."""
    limit = BYTES_OF_A_PARAMETER * need.parameters + BYTES_OF_TEXTS
    if not choice.operator and fetched > limit:
        raise EngineError(
            f"{choice.label} has {size(fetched)} of files, but its config describes {count(need.parameters)} "
            f"parameters, which take at most {size(limit)}; choose another model."
        )


def _try_out(engine: Engine, choice: BaseChoice) -> None:
    """Run a short generation test on a loaded base before anyone uses it."""
    try:
        *_, step = engine.answer([Row(BASE, (Message("user", "Hello"),))], Sampling(max_new_tokens=2))
        failure = step.rows[0].error
    except EngineError as error:
        failure = str(error)
    if failure:
        engine.close(f"{choice.label} cannot answer.")
        raise EngineError(f"{choice.label} was loaded, but cannot answer. {failure}")
