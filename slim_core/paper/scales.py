# SPDX-License-Identifier: Apache-2.0
"""What an experiment is done on: the demo's world on a CPU, or a base and the data sets of the paper."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from ..demo.downstream import DOWNSTREAM_TASKS
from ..demo.tasks import demo_tasks
from ..demo.trial import TrialPlan, TrialTask, settings_of, sha256, write_data
from ..demo.words import task_words
from ..demo.world import GENERAL_TASKS
from ..evaluation.tasks import GENERAL, Asking, Request, Task, load_tasks, short_title, title_of, training_questions
from ..training import TrainSettings
from .runs import MIXED, Cell, PaperError


NOISY = "noisy"
CHAT_SHARE = 0.05
# Fields of a training's settings that say where it is, not what it is.
PLACES = ("base", "data", "output", "resume", "bf16", "start_from")

# Files of a base on which its answers depend: weights, configuration, tokenizer, template.
CONTENT = (".safetensors", ".json", ".model", ".txt", ".jinja")


def in_sentence(title: str) -> str:
    """What a task is about, for the middle of a sentence."""
    short = short_title(title)
    return short[:1].lower() + short[1:]


def unknown_set(name: str, sets: Iterable[str]) -> PaperError:
    """The error for a name that no set of training examples has."""
    return PaperError(f"There is no set of training examples {name!r}; there are {MIXED}, {NOISY}, {', '.join(sets)}.")


@dataclass(frozen=True)
class DemoScale:
    """The demo's base and its world.

    Attributes:
        folder: of the base.
        plan: how adapters are trained.
        questions: test questions of each task.
        rates, seeds: that are tried where no others are named.
        steps: of the experiment about them.
    """

    name: ClassVar[str] = "demo"
    revision: ClassVar[None] = None
    folder: Path
    plan: TrialPlan = field(default_factory=TrialPlan)
    questions: int = 200
    rates: tuple[float, ...] = (3e-3,)
    seeds: tuple[int, ...] = (42, 43, 44)
    steps: tuple[int, ...] = (50, 100, 200, 400, 700)

    @property
    def base(self) -> str:
        """Folder or Hub id of the base."""
        return str(self.folder)

    @property
    def sets(self) -> dict[str, str]:
        """The downstream tasks, each of which is a set of training examples too: what they are about, by name."""
        return {name: in_sentence(task_words(name)) for name in DOWNSTREAM_TASKS}

    @property
    def sentence(self) -> str:
        """How it differs from the paper's experiment."""
        return (
            "Here a base of 2.3 million parameters learned three tasks of the demo's world in the paper's forms, in "
            f"{self.plan.steps} steps of {self.plan.batch}, and the general tasks are the demo's own five; only the "
            "order of the methods can be compared, not the numbers."
        )

    def identity(self, data: str) -> dict[str, Any]:
        """What a training depends on besides its settings: the base and the set of examples."""
        amounts = {name: getattr(self.plan, name) for name in ("examples", "earlier", "general_share")}
        return {"base": sha256(self.folder / "model.safetensors"), "set": data} | amounts

    def settings(self, cell: Cell, data: Path, folder: Path, before: Path | None = None) -> TrainSettings:
        """The settings of a cell's training.

        Args:
            cell: what is trained.
            data: its training examples.
            folder: of the adapter.
            before: of the adapter that it goes on from.
        """
        steps = self.plan.steps if cell.contender.steps is None else cell.contender.steps
        task = TrialTask(cell.contender.setup.method, cell.rate, cell.seed, self.folder, data, folder)
        settings = settings_of(cell.contender.setup, task, replace(self.plan, steps=steps))
        return settings if before is None else replace(settings, start_from=str(before))

    def write_set(self, name: str, path: Path) -> None:
        """Write a set of training examples as JSON lines."""
        if name in (MIXED, NOISY):
            write_data(path, self.plan, chat_share=CHAT_SHARE if name == NOISY else 0.0)
        elif name in DOWNSTREAM_TASKS:
            write_data(path, self.plan, (name,))
        else:
            raise unknown_set(name, self.sets)

    def asked(self, part: str) -> list[Any]:
        """What the questions of `tasks` depend on."""
        return [part, self.questions]

    def tasks(self, part: str) -> list[Task]:
        """The tasks that a contender trained on this set is measured on."""
        learned = DOWNSTREAM_TASKS if part == MIXED else (part,)
        names = [f"demo_{task}" for task in (*GENERAL_TASKS, *learned)]
        return load_tasks(names, Asking(limit=self.questions), others=demo_tasks())


@dataclass(frozen=True)
class FullScale:
    """A base from the Hub and the paper's data sets.

    Attributes:
        base: folder or Hub id.
        downstream: sets that are trained together, and for which a contender is measured.
        data_dir: folder with the sets; None for the Hub.
        chat: file with general conversations, for the noisy set.
        questions: of each task; None for all.
        max_steps: of a training; None for two epochs.
        revision: version of a Hub base.
        four_bit: base in 4 bits while training.
        rates, seeds: that are tried where no others are named.
        steps: of the experiment about them.
    """

    name: ClassVar[str] = "full"
    base: str = "Qwen/Qwen3-0.6B"
    downstream: tuple[str, ...] = ("openbookqa", "social_iqa", "boolq")
    data_dir: Path | None = None
    chat: Path | None = None
    questions: int | None = None
    max_steps: int | None = None
    revision: str | None = None
    four_bit: bool = False
    rates: tuple[float, ...] = (3e-4,)
    seeds: tuple[int, ...] = (42, 43, 44)
    steps: tuple[int, ...] = (100, 300, 1000, 3000)

    @property
    def sets(self) -> dict[str, str]:
        """The downstream tasks, each of which is a set of training examples too: what they are about, by name.

        Raises:
            EvaluationError: if there is no such set.
        """
        return {name: in_sentence(title_of(name)) for name in self.downstream}

    @property
    def sentence(self) -> str:
        """How it differs from the paper's experiment."""
        trained = ", ".join(title_of(name).split("as in ")[-1] for name in self.downstream)
        return (
            f"Here the base is {self.base}, trained on {trained}; the paper's is larger, and how "
            "it asked its questions is not known in every detail."
        )

    def identity(self, data: str) -> dict[str, Any]:
        """What a training depends on besides its settings: the base and the set of examples.

        Raises:
            EvaluationError: if a folder lacks data.
        """
        origin = None if self.data_dir is None else _mark(self._chosen(data), self.data_dir)
        return {"base": _base(self.base), "set": data, "downstream": self.downstream, "data": origin} | (
            {"chat": sha256(self.chat)} if data == NOISY and self.chat is not None else {}
        )

    def settings(self, cell: Cell, data: Path, folder: Path, before: Path | None = None) -> TrainSettings:
        """The settings of a cell's training; see `DemoScale`."""
        setup = cell.contender.setup
        usual: dict[str, Any] = {"validation_share": 0.01, "group_by_length": True, "skip_long": True}
        steps = self.max_steps if cell.contender.steps is None else cell.contender.steps
        return TrainSettings(
            base=self.base,
            base_revision=self.revision,
            data=[str(data)],
            output=folder,
            methods=[setup.method],
            learning_rate=cell.rate,
            seed=cell.seed,
            max_steps=steps,
            four_bit=self.four_bit,
            resume=(folder / "training.json").is_file(),
            start_from=None if before is None else str(before),
            **(usual | dict(setup.changes)),
        )

    def write_set(self, name: str, path: Path) -> None:
        """Write a set of training examples as JSON lines."""
        if name not in (MIXED, NOISY, *self.downstream):
            raise unknown_set(name, self.sets)
        lines = list(_lessons(self._chosen(name), self.data_dir))
        if name == NOISY:
            lines += self._chats(round(len(lines) * CHAT_SHARE / (1 - CHAT_SHARE)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _chosen(self, data: str) -> tuple[str, ...]:
        return (data,) if data in self.downstream else self.downstream

    def _chats(self, n: int) -> list[str]:
        if self.chat is None:
            raise PaperError(
                "The noisy set needs general conversations; name a file of them with --chat, a JSON object with "
                "`messages` on each line."
            )
        lines = [line for line in self.chat.read_text(encoding="utf-8").splitlines() if line.strip()]
        if len(lines) < n:
            raise PaperError(f"{self.chat} has {len(lines)} conversations; {n} are needed for {CHAT_SHARE:.0%}.")
        return lines[:n]

    def asked(self, part: str) -> list[Any]:
        """What the questions of `tasks` depend on. Those of the Hub need not be there yet.

        Raises:
            EvaluationError: if a folder lacks data.
        """
        marks = None if self.data_dir is None else _marks(self, part)
        return [part, self.questions, self.downstream, marks]

    def tasks(self, part: str) -> list[Task]:
        """The tasks that a contender trained on this set is measured on."""
        return _tasks(self, part)


@cache
def _tasks(scale: FullScale, part: str) -> list[Task]:
    learned = scale.downstream if part == MIXED else (part,)
    # All in words, so that they share a table.
    asking = Asking("written", limit=scale.questions)
    names = [*(f"downstream:{name}" for name in learned), *(f"general:{name}" for name in GENERAL)]
    return load_tasks(names, asking, data_dir=scale.data_dir)


# What is hashed is read once in a process: a table asks for the name of each of its cells several times.


@cache
def _marks(scale: FullScale, part: str) -> list[str]:
    return [task.fingerprint for task in _tasks(scale, part)]


@cache
def _lessons(names: tuple[str, ...], data_dir: Path | None) -> tuple[str, ...]:
    return tuple(_lesson(item) for name in names for item in training_questions(name, data_dir))


@cache
def _mark(names: tuple[str, ...], data_dir: Path) -> str:
    return _hash_of(_lessons(names, data_dir))


@cache
def _base(base: str) -> str:
    """What tells a base from others: the content of a folder, or an id of the Hub."""
    folder = Path(base)
    if not folder.is_dir():
        return base
    files = (path for path in sorted(folder.iterdir()) if path.suffix in CONTENT)
    return _hash_of(f"{path.name} {sha256(path)}" for path in files)


def _hash_of(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _lesson(item: Request) -> str:
    """A training question with its answer, worded as in LLM-Adapters' data."""
    assert not isinstance(item.prompt, str)  # asked as a user's message
    assert hasattr(item.expected, "targets")
    answer = {"role": "assistant", "content": f"the correct answer is {item.expected.targets[0]}"}
    return json.dumps({"messages": [*({"role": m.role, "content": m.content} for m in item.prompt), answer]})


# What an experiment is done on.
Scale = DemoScale | FullScale


def described(settings: TrainSettings) -> dict[str, Any]:
    """A training's settings as data, without the places of its files and without what has its default value.

    So a setting that a later version adds changes no name in a work folder.
    """
    defaults = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(settings)
    }
    values = {name: value for name, value in asdict(settings).items() if name not in PLACES}
    return {name: value for name, value in values.items() if value != defaults[name]}
