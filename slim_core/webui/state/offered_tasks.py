# SPDX-License-Identifier: Apache-2.0
"""The tasks that visitors may evaluate on: the demo's, the paper's where the data are here, and general ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...demo.tasks import NAMES, demo_tasks
from ...evaluation.errors import EvaluationError
from ...evaluation.tasks import PAPER, Asking, Kind, Task, load_tasks
from ..limits import LimitError


# They ship with the project. The demo's model is too small for instructions.
OPEN, INSTRUCTIONS = "open_questions", "instructions"


@dataclass(frozen=True)
class OfferedTask:
    """A task by its name in words.

    Attributes:
        name: of the task, as `evaluate --tasks` takes it.
        title: for people.
        kind: what the adapters were trained on, or what the base knew before.
        chosen: whether it is chosen from the beginning.
    """

    name: str
    title: str
    kind: Kind
    chosen: bool


class OfferedTasks:
    """The tasks that visitors may choose.

    Args:
        is_demo: whether the demo's are among them.
        data_dir: folder with the paper's data sets, as for `evaluate --data-dir`; None for none of them.

    Attributes:
        tasks: in the order in which they are shown.
    """

    def __init__(self, is_demo: bool, data_dir: Path | None = None) -> None:
        self._data_dir = data_dir
        preferred = (*(NAMES if is_demo else ()), *(PAPER if data_dir is not None else ()))
        names = (*preferred, OPEN) if is_demo else (*preferred, OPEN, INSTRUCTIONS)
        offered = [self._offered(name, chosen=name in preferred or not preferred) for name in names]
        self.tasks = tuple(task for task in offered if task is not None)

    def _offered(self, name: str, chosen: bool) -> OfferedTask | None:
        """A task; None if its data are not in the folder."""
        try:
            (task,) = self._load([name], 1)
        except EvaluationError:
            return None
        return OfferedTask(name, task.title, task.kind, chosen)

    def _load(self, names: Sequence[str], questions: int) -> list[Task]:
        return load_tasks(names, Asking(limit=questions), data_dir=self._data_dir, others=demo_tasks())

    def check(self, names: Any) -> list[str]:
        """The chosen names, in the order in which they are shown.

        Raises:
            LimitError: if there is none, or one that is not offered.
        """
        known = [task.name for task in self.tasks]
        if not isinstance(names, list) or not all(name in known for name in names):
            raise LimitError("These tasks are not offered here. Reload the page and choose again.")
        if not names:
            raise LimitError("Choose at least one task first.")
        return [name for name in known if name in names]

    def load(self, names: Sequence[str], questions: int) -> list[Task]:
        """The tasks of checked names.

        Args:
            names: of `check`.
            questions: how many are drawn of each; always the same ones.

        Raises:
            EvaluationError: if one can no longer be read.
        """
        return self._load(names, questions)
