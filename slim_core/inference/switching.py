# SPDX-License-Identifier: Apache-2.0
"""Another base in place of the one that answers: fetched first, then the old one goes, then the new one comes."""

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
from ..outside.errors import first_line
from .engine import Engine
from .loading import read_base
from .stops import Stops
from .types import Drift, MemoryUse, ModelInfo, Row, Sampling, Step, Variant
from .variants import BASE


# checking: its config and size. fetching: its files. ending: answers that are being written with the old base.
# loading: its weights. done, failed: see the sentence.
Stage = Literal["checking", "fetching", "ending", "loading", "done", "failed"]
log = logging.getLogger(__name__)
# Of what a visitor's base may fetch: float32 with an output head that is stored twice, tokenizer and index beside it.
BYTES_OF_A_PARAMETER, BYTES_OF_TEXTS = 8, 256 * 1024 * 1024


@dataclass(frozen=True)
class Progress:
    """How far a switch is.

    Attributes:
        label: the new base's name.
        stage: what is happening.
        done: bytes that were fetched, or weights that were loaded.
        total: of how many; 0 where nobody knows.
        sentence: how it ended.
    """

    label: str
    stage: Stage
    done: int = 0
    total: int = 0
    sentence: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.stage in ("done", "failed")


class UnavailableEngine:
    """Stands where the engine was while there is none, and says so. What it shows is what was loaded last."""

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

    def drift(self, messages: Sequence[Message], answer_ids: Sequence[int], variants: Sequence[str]) -> Drift:
        self._refuse()

    def count_tokens(self, messages: Sequence[Message]) -> int:
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
    """Changes the one base that all visitors share. Any thread may call any method.

    Args:
        engine: what answers now.
        choice: what it was loaded from; what comes back when nothing else can be loaded.
        device: where bases go; None for CUDA or MPS where they are, else the CPU.
        put: called with what answers from now on, an engine or one that stands in for it.

    Attributes:
        choice: what answers now, or answered last.
        progress: how far the latest switch is; None before the first.
        generation: counts the bases that answered; conversations and adapters of earlier ones are gone.
    """

    def __init__(
        self,
        engine: Engine,
        choice: BaseChoice,
        device: str | torch.device | None = None,
        put: Callable[[Engine | UnavailableEngine], None] = lambda engine: None,
    ) -> None:
        self.choice = self._first = choice
        self.progress: Progress | None = None
        self.generation = 0
        self._engine: Engine | UnavailableEngine = engine
        self._device, self.put = device, put
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def need(self, choice: BaseChoice) -> MemoryNeed:
        """What a base would take. Fetches its config at most.

        Raises:
            EngineError: if it cannot be had, cannot answer here, or does not fit.
        """
        with base_files(choice) as files:
            return self._plan(choice, files.config()).need

    def start(self, choice: BaseChoice) -> None:
        """Begin to switch; `progress` tells the rest.

        Raises:
            EngineError: if another switch is on its way.
        """
        with self._lock:
            if self.progress is not None and not self.progress.ended:
                raise EngineError(f"{self.progress.label} is being loaded already; wait until it is.")
            self.progress = Progress(choice.label, "checking")
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(choice, self._stop), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Give the latest switch up. Once the old base is gone it goes on to its end."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> Progress | None:
        """Wait until the latest switch has ended, at most so long."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self.progress

    # -- in a thread of its own ----------------------------------------------------------------------------------

    def _report(self, stage: Stage, done: int = 0, total: int = 0, sentence: str = "") -> None:
        assert self.progress is not None  # since `start`
        self.progress = replace(self.progress, stage=stage, done=done, total=total, sentence=sentence)

    def _run(self, choice: BaseChoice, stop: threading.Event) -> None:
        before = self._engine
        why = self._switch(choice, stop)
        if why is None:
            self._report("done", sentence=f"The base is {choice.label} now; conversations and adapters begin anew.")
        elif self._engine is before:
            self._report("failed", sentence=why)
        else:
            self._report("failed", sentence=self._go_back(why))

    def _switch(self, choice: BaseChoice, stop: threading.Event) -> str | None:
        """Returns why it failed. What was half loaded is gone by then: the traceback that held it is."""
        try:
            with base_files(choice) as files:
                how = self._plan(choice, files.config(stop))
                _check_amount(choice, files.size, how.need)
                self._report("fetching", 0, files.size)
                folder = files.fetch(lambda done, total: self._report("fetching", done, total), stop)
                if stop.is_set():
                    raise EngineError(f"Loading {choice.label} was stopped.")
                # Before the old base goes: its chat template is a program, and may never end.
                prompts = read_prompts(choice, folder)
                self._release(choice)
                engine = read_base(choice, folder, how, prompts, lambda *n: self._report("loading", *n))
                _try_out(engine, choice)
                self._come(choice, engine)
            return None
        except EngineError as error:
            return str(error)
        except BaseException as error:  # a panic of a library is no Exception, and would end the thread
            log.exception("a base could not be loaded")
            return f"Loading {choice.label} failed: {first_line(error)}."

    def _plan(self, choice: BaseChoice, config: PreTrainedConfig) -> LoadPlan:
        # All that the old base gives back, where it is.
        return plan(choice, config, self._device, released=self._engine.held)

    def _release(self, choice: BaseChoice) -> None:
        self._report("ending")
        sentence = f"The base is being switched to {choice.label}; ask again when it is loaded."
        old = self._engine
        self._replace(UnavailableEngine(old, sentence))
        if isinstance(old, Engine):
            old.close(sentence)
        self._report("loading")

    def _come(self, choice: BaseChoice, engine: Engine) -> None:
        self.choice = choice
        self.generation += 1
        self._replace(engine)

    def _go_back(self, why: str) -> str:
        """Load again what was there before, else what the app started with. Returns what is to be said."""
        # A visitor's base would have to be fetched anew, while nobody gets an answer.
        choices = [choice for choice in dict.fromkeys((self.choice, self._first)) if choice.operator]
        for choice in choices:
            failed = self._load_again(choice)
            if failed is None:
                return f"{why} {choice.label} is loaded again; conversations and adapters begin anew."
            why = f"{why} {failed}"
        self._replace(UnavailableEngine(self._engine, f"No base is loaded. {why}"))
        return why

    def _load_again(self, choice: BaseChoice) -> str | None:
        """Returns why it failed."""
        self._report("loading")
        gc.collect()
        try:
            with base_files(choice) as files:
                folder = files.fetch(lambda done, total: None, threading.Event())
                how = plan(choice, files.config(), self._device)
                self._come(choice, read_base(choice, folder, how, read_prompts(choice, folder)))
        except BaseException as error:
            log.exception("the base of before could not be loaded again")
            return f"{choice.label} could not be loaded again: {first_line(error)}."
        return None

    def _replace(self, engine: Engine | UnavailableEngine) -> None:
        self._engine = engine
        self.put(engine)


def _check_amount(choice: BaseChoice, fetched: int, need: MemoryNeed) -> None:
    """A visitor's files hold the weights that their config describes, and not much else."""
    most = BYTES_OF_A_PARAMETER * need.parameters + BYTES_OF_TEXTS
    if not choice.operator and fetched > most:
        raise EngineError(
            f"{choice.label} has {size(fetched)} of files, but its config describes {count(need.parameters)} "
            f"parameters, which take at most {size(most)}; choose another model."
        )


def _try_out(engine: Engine, choice: BaseChoice) -> None:
    """Let a base that was loaded answer before anybody gets it."""
    try:
        *_, step = engine.answer([Row(BASE, (Message("user", "Hello"),))], Sampling(max_new_tokens=2))
        why = step.rows[0].error
    except EngineError as error:
        why = str(error)
    if why:
        engine.close(f"{choice.label} cannot answer.")
        raise EngineError(f"{choice.label} was loaded, but cannot answer. {why}")
