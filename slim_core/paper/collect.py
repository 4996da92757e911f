# SPDX-License-Identifier: Apache-2.0
"""From measured cells to one evaluation for each set of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..evaluation.results import Evaluation, Participant, evaluated
from ..evaluation.run import unsolved
from ..evaluation.solving import Sample
from ..evaluation.summary import BASE, Group, solved_samples
from ..inference import GateSetting, ModelInfo
from ..inference.types import Variant
from ..many import Respondent
from .execute import ROW
from .runs import Cell, Contender, Experiment, PaperError
from .work import CellFiles, WorkFolder, read_measured


# What is known about a training, by name.
Training = Mapping[str, Any]
# Measurements of one variant: for each task, those of each item.
ByTask = dict[str, list[float]]


@dataclass(frozen=True)
class Part:
    """All contenders that are measured on the same tasks.

    Attributes:
        name: of the data set that they were trained on.
        columns: the cell of each column of the evaluation.
        chosen: for each contender with several rates, the one with the lowest validation loss. None where
            not every rate is trained yet.
        evaluation: all answers.
        left_out: tasks of which no item could be solved, each with a sentence that says why.
    """

    name: str
    columns: Mapping[str, Cell]
    chosen: Mapping[str, float | None]
    evaluation: Evaluation
    left_out: Mapping[str, str]

    def columns_of(self, contender: Contender) -> list[str]:
        """The contender's columns at its rate, one per seed."""
        return [c for c, cell in self.columns.items() if cell.contender.name == contender.name and " at " not in c]


@dataclass(frozen=True)
class Collected:
    """The finished part of an experiment.

    Attributes:
        experiment: the experiment.
        parts: by set of tasks.
        missing: cells that are not finished.
        files: where each cell's files are.
        trainings: of the finished cells: steps, parameters, validation_loss, seconds, and peak_memory in bytes.
    """

    experiment: Experiment
    parts: tuple[Part, ...]
    missing: tuple[Cell, ...]
    files: Mapping[str, CellFiles]
    trainings: Mapping[str, Training]

    def trainings_of(self, contender: Contender) -> list[Training]:
        """The trainings of a contender's finished cells."""
        return [facts for key, facts in self.trainings.items() if key.startswith(f"{contender.name} at ")]


def columns_by_rate(columns: Mapping[str, Cell], contender: Contender) -> dict[float, list[str]]:
    """A contender's columns at each rate that was measured, a seed each; the lowest rate first."""
    by_rate: dict[float, list[str]] = {}
    for column, cell in columns.items():
        if cell.contender.name == contender.name:
            by_rate.setdefault(cell.rate, []).append(column)
    return dict(sorted(by_rate.items()))


def key_of(cell: Cell) -> str:
    """A cell's name, unique in an experiment."""
    return f"{cell.contender.name} at {cell.rate:g}@{cell.seed}"


def collect(work: WorkFolder, experiment: Experiment, cells: Sequence[Cell]) -> Collected:
    """Collect what is finished.

    Args:
        work: the working folder.
        experiment: the experiment.
        cells: its cells.

    Raises:
        PaperError: if two measurements do not belong together.
    """
    cell_files = {key_of(cell): work.files_of(cell) for cell in cells}
    done = [cell for cell in cells if cell_files[key_of(cell)].measured.is_file()]
    contents = {key_of(cell): read_measured(cell_files[key_of(cell)].measured) for cell in done}
    trainings = {key: content["training"] for key, content in contents.items()}
    parts = tuple(
        _part(work, experiment, name, [cell for cell in cells if cell.contender.part == name], contents, cell_files)
        for name in dict.fromkeys(cell.contender.part for cell in done)
    )
    missing = tuple(cell for cell in cells if key_of(cell) not in contents)
    return Collected(experiment, parts, missing, cell_files, trainings)


def _part(
    work: WorkFolder,
    experiment: Experiment,
    name: str,
    cells: Sequence[Cell],
    contents: Mapping[str, Mapping[str, Any]],
    cell_files: Mapping[str, CellFiles],
) -> Part:
    chosen = _chosen_rates(cells, contents)
    columns: dict[str, Cell] = {}
    participants: list[Participant] = []
    samples: dict[str, list[Sample]] = {}
    info: ModelInfo | None = None
    tasks = work.scale.tasks(name)
    for cell in cells:
        files, content = cell_files[key_of(cell)], contents.get(key_of(cell))
        if content is None:
            continue
        if content["tasks"] != {task.name: task.fingerprint for task in tasks}:
            raise PaperError(
                f"{files.measured.name} was measured on questions other than the current ones; delete it to measure "
                "again."
            )
        only = cell.contender.name not in chosen or chosen[cell.contender.name] == cell.rate
        column = f"{cell.contender.name}@{cell.seed}" if only else key_of(cell)
        columns[column] = cell
        if info is None:
            info = ModelInfo(**content["base"])
            participants.append(Participant(Respondent(BASE, Variant(**content["base_variant"])), info.name))
            samples = {t.name: [_only(sample, BASE, BASE) for sample in content["samples"][t.name]] for t in tasks}
        variant = Respondent(column, Variant(**content["variant"]), GateSetting(content["strength"]))
        method = cell.contender.title if only else f"{cell.contender.title} at {cell.rate:g}"
        participants.append(Participant(variant, content["adapter"], content["sha256"], method=method))
        for task in tasks:
            _join(samples[task.name], content["samples"][task.name], column, files)
    assert info is not None  # at least one cell of a part is finished
    pairs, left_out = _pairs(columns, experiment.rival), unsolved(samples)
    solved = [task for task in tasks if task.name not in left_out]
    return Part(name, columns, chosen, evaluated(info, participants, solved, samples, False, pairs), left_out)


def _only(sample: Sample, name: str, column: str) -> Sample:
    """A sample with only the answer of one column."""
    if "error" in sample:
        return sample
    return {"id": sample["id"], "answers": {column: sample["answers"][name]}}


def _join(samples: list[Sample], row_samples: Sequence[Sample], column: str, files: CellFiles) -> None:
    """Add the answers of a row to those of the others.

    Raises:
        PaperError: if the base's answers differ from those next to the other rows, so that the comparison would not be
            fair.
    """
    for index, (sample, row_sample) in enumerate(zip(samples, row_samples, strict=True)):
        if "error" in sample or "error" in row_sample:
            samples[index] = sample if "error" in sample else row_sample
            continue
        base, repeated = sample["answers"][BASE], row_sample["answers"][BASE]
        if base["mark"] != repeated["mark"]:
            raise PaperError(
                f"The base's answer {sample['id']} in {files.measured.name} differs from its answer in others, as it "
                "would on another machine; delete that file to measure it again."
            )
        sample["answers"][column] = row_sample["answers"][ROW]


def _pairs(columns: Mapping[str, Cell], rival: str) -> list[tuple[str, str]]:
    """Pairs of each column with the base, and with the rival from the same seed."""
    pairs = []
    for column, cell in columns.items():
        if " at " in column:
            continue
        pairs.append((column, BASE))
        other = f"{rival}@{cell.seed}"
        if other in columns and other != column:
            pairs.append((column, other))
    return pairs


def _chosen_rates(cells: Sequence[Cell], contents: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """The rate with the lowest validation loss, for contenders that are tried at several."""
    chosen: dict[str, float | None] = {}
    for name in dict.fromkeys(cell.contender.name for cell in cells):
        tried = [cell for cell in cells if cell.contender.name == name]
        if len({cell.rate for cell in tried}) > 1:
            chosen[name] = _best(tried, contents)
    return chosen


def _best(cells: Sequence[Cell], contents: Mapping[str, Mapping[str, Any]]) -> float | None:
    losses: dict[float, list[float]] = {cell.rate: [] for cell in cells}
    for cell in cells:
        content = contents.get(key_of(cell))
        loss = None if content is None else content["training"]["validation_loss"]
        if loss is not None:
            losses[cell.rate].append(loss)
    if not all(losses.values()):
        return None
    return min(losses, key=lambda rate: (fmean(losses[rate]), rate))


# -- what was measured of one variant --------------------------------------------------------------------------


def values_of(part: Part, group: Group, kind: str, columns: Sequence[str]) -> ByTask:
    """For each task of a kind the marks of its items, mean over the columns, which are seeds."""
    marks: ByTask = {}
    for task in group.tasks:
        if task.kind == kind:
            samples = solved_samples(part.evaluation.samples[task.name])
            marks[task.name] = [fmean(s["answers"][column]["mark"] for column in columns) for s in samples]
    return marks


def kinds_of(group: Group) -> list[str]:
    """The kinds of tasks in a group: first those that were trained."""
    return [kind for kind in ("downstream", "general") if kind in group.kinds]
