# SPDX-License-Identifier: Apache-2.0
"""The steps of `paper`: plan, train and measure, collect, show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from transformers.utils.logging import disable_progress_bar

from ..base.formatting import counted
from ..demo.pool import worker_pool
from ..demo.trial import TrialPlan
from ..evaluation.report import report_page
from ..outside.errors import printable
from ..paper.collect import Collected, collect
from ..paper.estimate import estimate_paper
from ..paper.execute import run_cells
from ..paper.experiments import EXPERIMENTS, steps_of
from ..paper.frontier import points_of
from ..paper.published import SOURCE
from ..paper.results import result_file
from ..paper.runs import Cell, Experiment, PaperError
from ..paper.scales import DemoScale, FullScale, Scale
from ..paper.sequence import sequence_data
from ..paper.tables import cases, notes, tables
from ..paper.work import WorkFolder
from .console import print_table, screen
from .files import write_whole


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line; empty lists stand for the scale's own values."""

    experiment: str
    only: list[str]
    rates: list[float]
    seeds: list[int]
    steps: list[int]
    questions: int | None
    base: str | None
    plan: dict[str, Any]
    data_dir: Path | None
    downstream: list[str]
    chat: Path | None
    revision: str | None
    four_bit: bool

    def scale(self, name: str, demo: Path) -> Scale:
        """What the experiment is done on.

        Args:
            name: "demo" or "full".
            demo: folder of the demo.

        Raises:
            PaperError: if an option belongs to the other scale, or is invalid.
        """
        _check_numbers(self)
        return self._demo(demo) if name == "demo" else self._full()

    def _one_number_of_steps(self) -> int | None:
        return self.steps[0] if self.steps and self.experiment != "steps" else None

    def _demo(self, demo: Path) -> DemoScale:
        flags = {
            "--data-dir": self.data_dir,
            "--downstream": self.downstream,
            "--chat": self.chat,
            "--revision": self.revision,
            "--load-4bit": self.four_bit,
        }
        for flag, value in flags.items():
            if value:
                raise PaperError(f"{flag} is for --scale full; leave it out, or name that scale.")
        folder = Path(self.base) if self.base else demo / "base"
        if not (folder / "model.safetensors").is_file():
            raise PaperError(
                f"{folder} has no model.safetensors; --base at demo scale is a folder like the demo's base."
            )
        plan = replace(TrialPlan(), **_plan_fields(self.plan))
        steps = self._one_number_of_steps()
        scale = DemoScale(folder, plan if steps is None else replace(plan, steps=steps))
        return scale if self.questions is None else replace(scale, questions=self.questions)

    def _full(self) -> FullScale:
        if self.plan:
            raise PaperError("--plan is for --scale demo; leave it out.")
        for flag, path in (("--data-dir", self.data_dir), ("--chat", self.chat)):
            if path is not None and not path.exists():
                raise PaperError(f"There is no {path}; name something else with {flag}.")
        usual = FullScale()
        return FullScale(
            base=self.base or usual.base,
            downstream=tuple(self.downstream) or usual.downstream,
            data_dir=self.data_dir,
            chat=self.chat,
            questions=self.questions,
            max_steps=self._one_number_of_steps(),
            revision=self.revision,
            four_bit=self.four_bit,
        )

    def build(self, scale: Scale) -> Experiment:
        """The experiment with the chosen rows.

        Raises:
            PaperError: if it has no such row.
        """
        if self.experiment == "steps":
            return steps_of(self.steps or scale.steps)(scale.sets).only(self.only)
        return EXPERIMENTS[self.experiment](scale.sets).only(self.only)


def _check_numbers(options: Options) -> None:
    if len(options.steps) > 1 and options.experiment != "steps":
        raise PaperError(f"--steps has {len(options.steps)} numbers; only the experiment `steps` takes several.")
    if len(options.rates) > 1 and options.experiment == "sequence":
        raise PaperError("--rates has several values; all stages of a sequence have one rate.")
    for flag, values in (("--rates", options.rates), ("--seeds", options.seeds), ("--steps", options.steps)):
        if len(set(values)) < len(values):
            raise PaperError(f"{flag} names something twice; name each once.")
    if any(not 0 < rate < 1 for rate in options.rates):
        raise PaperError("--rates must be above 0 and below 1.")
    if any(number < 1 for number in options.steps):
        raise PaperError("--steps must be 1 or more.")
    if any(seed < 0 for seed in options.seeds):
        raise PaperError("--seeds must be 0 or more.")


def _plan_fields(changes: dict[str, Any]) -> dict[str, Any]:
    known = [field.name for field in fields(TrialPlan) if field.name not in ("rates", "seeds", "half", "questions")]
    for name in changes:
        if name not in known:
            raise PaperError(f"--plan has no field {name!r}; there are {', '.join(known)}.")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}


def run_paper(
    options: Options,
    scale_name: str,
    demo: Path,
    folder: Path,
    jobs: int,
    yes: bool,
    dry_run: bool,
    report: bool,
    markdown: bool,
    items: int,
) -> None:
    """Do what the command says.

    Raises:
        EngineError, TrainingError: if something prevents it.
        typer.Exit: with 130 if a person interrupted it, with 1 if a cell failed.
    """
    disable_progress_bar()
    scale = options.scale(scale_name, demo)
    experiment = options.build(scale)
    work = WorkFolder(folder, scale)
    cells = experiment.cells(options.rates or scale.rates, options.seeds or scale.seeds)
    failed = []
    if not report:
        estimate = estimate_paper(work, cells)
        say(f"{experiment.title}: {counted(len(cells), 'cell')}. {estimate.words}")
        if dry_run:
            for cell in cells:
                say(f"{cell.words}: {_state(work, cell)}")
            return
        if estimate.measurements and scale_name == "full" and not torch.cuda.is_available() and not yes:
            raise PaperError("There is no GPU here, so this would take far longer; pass --yes to start anyway.")
        if estimate.measurements:
            # Before anything is trained: questions may be missing.
            for part in dict.fromkeys(cell.contender.part for cell in cells):
                scale.tasks(part)
        failed = run_jobs(work, cells, jobs)
    collected = collect(work, experiment, cells)
    written = _write(collected, work, scale_name)
    _show(collected, scale, markdown, items)
    if written:
        say(f"Results: {', '.join(printable(str(path)) for path in written)}.")
    if failed:
        raise typer.Exit(1)


def _state(work: WorkFolder, cell: Cell) -> str:
    files = work.files_of(cell)
    if files.measured.is_file():
        return "finished"
    if files.record is not None:
        return "trained"
    return "begun" if (files.origin / "training.json").is_file() else "to do"


def run_jobs(work: WorkFolder, cells: Sequence[Cell], jobs: int) -> list[str]:
    """Train and measure; returns what failed."""
    try:
        if jobs == 1:
            return run_cells(work, cells, say)
        with worker_pool(jobs) as pool:
            waiting = [pool.submit(run_cells, work, cells, say) for _ in range(jobs)]
            return sorted({sentence for job in waiting for sentence in job.result()})
    except KeyboardInterrupt:
        say("Interrupted; the same command continues from here.")
        raise typer.Exit(130) from None


def _write(collected: Collected, work: WorkFolder, scale: str) -> list[Path]:
    if not collected.parts:
        return []
    name = f"{collected.experiment.name}-{scale}"
    results = work.folder / f"{name}.json"
    pages = []
    for part in collected.parts:
        pages.append(work.folder / f"{name}-{part.name}.html")
        points = partial(points_of, part, contenders=collected.experiment.contenders)
        write_whole(pages[-1], report_page(part.evaluation, points))
    content = result_file(collected, work)
    if collected.experiment.name == "sequence":
        content["sequence"] = sequence_data(collected)
    write_whole(results, json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
    return [results, *pages]


def _show(collected: Collected, scale: Scale, markdown: bool, items: int) -> None:
    console = screen()
    case_tables = cases(collected, items) if collected.experiment.name == "case-study" and collected.parts else []
    for table in [*tables(collected), *case_tables]:
        if markdown:
            print(table.markdown(), end="\n\n")
        else:
            print_table(console, table.rich())
    sentences = [*notes(collected), SOURCE, scale.sentence]
    for sentence in sentences:
        if markdown:
            print(sentence, end="\n\n")
        else:
            console.print(sentence, soft_wrap=True, highlight=False)


def say(sentence: str) -> None:
    """Print a sentence about progress."""
    screen(stderr=True, soft_wrap=True).print(printable(sentence), highlight=False)
