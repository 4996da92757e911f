# SPDX-License-Identifier: Apache-2.0
"""Finding a task by name: one that ships with the project, a task file, or a user's own file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

from ...training.files import kind_of
from ..errors import EvaluationError
from .build import Asking, build_task
from .config import read_config
from .documents import records_of, split_of
from .local import LAYOUTS
from .task import Kind, Request, Task
from .user_files import open_questions, read_questions, read_text


LIBRARY = Path(__file__).with_name("library")
DOWNSTREAM = (
    "commonsense_qa",
    "hellaswag",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
    "social_iqa",
    "boolq",
)
GENERAL = ("mmlu", "gsm8k", "piqa")
PAPER = (*DOWNSTREAM, *GENERAL)
INSTRUCTIONS, OPEN = "instructions", "open_questions"
# A name for several.
GROUPS: dict[str, tuple[str, ...]] = {"paper": PAPER}
# As in LLM-Adapters' fine-tuning data, on which the demo's adapters were trained too.
TRAINED_FORM = r"the correct answer is|\b(?:answer|solution|ending|option)\d\b"

# Tasks provided elsewhere, by name.
Others = Mapping[str, Callable[[Asking], Task]]


def load_tasks(
    names: Sequence[str],
    asking: Asking,
    *,
    data_dir: Path | None = None,
    trained_form: str = TRAINED_FORM,
    others: Others | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> list[Task]:
    """The tasks of these names, in order.

    Args:
        names: of tasks or groups, or paths of task files, of files of questions, or of texts; "general:" or
            "downstream:" before a name says what it is about.
        asking: how they are asked.
        data_dir: folder with the sets of the paper; None for the Hub.
        trained_form: pattern of an answer in the trained form, for `OPEN`.
        others: more tasks.
        groups: more names for several.

    Raises:
        EvaluationError: if there is no such task, or one cannot be read.
    """
    others = others or {}
    if data_dir is not None and not data_dir.is_dir():
        raise EvaluationError(f"There is no folder {data_dir}; name one with data sets in --data-dir.")
    tasks: list[Task] = []
    for name, kind in _spread(names, GROUPS | dict(groups or {})):
        task = _load(name, replace(asking, kind=kind or asking.kind), data_dir, trained_form, others)
        if task.name in {other.name for other in tasks}:
            raise EvaluationError(f"There are two tasks named {task.name}; name each once.")
        tasks.append(task)
    if not tasks:
        raise EvaluationError("No task was named; name one with --tasks.")
    return tasks


def title_of(name: str) -> str:
    """The title of a set of the paper.

    Raises:
        EvaluationError: if `DOWNSTREAM` has no such set.
    """
    return str(_downstream(name)["metadata"]["title"])


def _downstream(name: str) -> dict[str, Any]:
    if name not in DOWNSTREAM:
        raise EvaluationError(f"There is no downstream set {name!r}; there are {', '.join(DOWNSTREAM)}.")
    return read_config(LIBRARY / f"{name}.yaml")


def training_questions(name: str, data_dir: Path | None) -> list[Request]:
    """The training questions of a set of the paper, in the words of LLM-Adapters' fine-tuning data.

    Args:
        name: of `DOWNSTREAM`.
        data_dir: folder with the sets; None for the Hub.

    Raises:
        EvaluationError: if there is no such set, the folder has no training questions of it, or they cannot be read.
    """
    config = _downstream(name)
    layout = LAYOUTS[config["metadata"]["layout"]]
    if data_dir is not None and not layout.splits:
        have = ", ".join(name for name in DOWNSTREAM if LAYOUTS[name].splits)
        raise EvaluationError(
            f"A folder for --data-dir has no training questions of {name}, only those of {have}; leave --data-dir out "
            "to take them from the Hub, or name others with --downstream."
        )
    read = partial(records_of, config, name=f"{name}.yaml", folder=LIBRARY, data_dir=data_dir)
    task = build_task(config, name, read, config["training_split"], Asking("written"))
    return [item for item in task.items if isinstance(item, Request)]


def _spread(names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[tuple[str, Kind | None]]:
    pairs: list[tuple[str, Kind | None]] = []
    for name in names:
        before, colon, rest = name.partition(":")
        kind = cast("Kind", before) if colon and before in get_args(Kind) else None
        name = rest if kind else name
        pairs += [(member, kind) for member in groups.get(name, [name])]
    return pairs


def _load(name: str, asking: Asking, data_dir: Path | None, trained_form: str, others: Others) -> Task:
    if name in others:
        return others[name](asking)
    if name == INSTRUCTIONS:
        task = read_questions(
            LIBRARY / f"{INSTRUCTIONS}.jsonl", replace(asking, form="standard", shots=None, chat=None)
        )
        return replace(task, title="Following instructions", kind=asking.kind or "general", source="written for this")
    if name == OPEN:
        lines = (LIBRARY / f"{OPEN}.txt").read_text(encoding="utf-8").splitlines()
        return open_questions(OPEN, lines, trained_form, asking)
    if name in PAPER:
        return _of_file(LIBRARY / f"{name}.yaml", name, asking, data_dir)
    path = Path(name).expanduser()
    if path.suffix.lower() in (".yaml", ".yml"):
        return _of_file(path, "", asking, data_dir)
    if path.suffix.lower() == ".txt":
        return read_text(path, asking)
    if kind_of(path) is not None:
        return read_questions(path, asking)
    known = (*GROUPS, *PAPER, INSTRUCTIONS, OPEN, *others)
    raise EvaluationError(
        f"There is no task {name!r}; the tasks are {', '.join(known)}, task files (.yaml), files of questions "
        "(.jsonl, .json, .csv, …) and texts (.txt)."
    )


def _of_file(path: Path, name: str, asking: Asking, data_dir: Path | None) -> Task:
    config = read_config(path)
    name = name or str(config.get("task") or path.stem)
    read = partial(records_of, config, name=path.name, folder=path.parent, data_dir=data_dir)
    return build_task(config, name, read, split_of(config), asking)
