# SPDX-License-Identifier: Apache-2.0
"""The steps of `paper bases`: train a base of each family, then adapters on it, collect, show."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from transformers.utils.logging import disable_progress_bar

from ..evaluation.report import report_page
from ..outside.errors import printable
from ..paper.bases import (
    FAMILIES,
    SECONDS_A_STEP,
    BaseShape,
    base_folder,
    bases_table,
    chosen_families,
    is_trained,
    scale_of,
    sentence_of,
    spent,
    train_base,
)
from ..paper.collect import Collected, collect
from ..paper.estimate import adapters_hours, duration, estimate_paper
from ..paper.experiments import EXPERIMENTS
from ..paper.results import result_file
from ..paper.runs import PaperError
from ..paper.scales import DemoScale
from ..paper.work import WorkFolder
from .console import print_table, screen
from .files import write_whole
from .paper_run import Options, run_jobs, say


def run_bases(
    options: Options,
    demo: Path,
    shape: BaseShape,
    folder: Path,
    jobs: int,
    dry_run: bool,
    report: bool,
    markdown: bool,
) -> None:
    """Do what the command says.

    Raises:
        EngineError, TrainingError: if something prevents it.
        typer.Exit: with 130 if a person interrupted it, with 1 if a cell failed.
    """
    disable_progress_bar()
    if options.base is not None:
        raise PaperError("`paper bases` trains its own bases; leave --base out.")
    scale = options.scale("demo", demo)
    assert isinstance(scale, DemoScale)  # as it was asked for
    families = chosen_families(options.only)
    experiment = EXPERIMENTS["bases"](scale.sets)
    cells = experiment.cells(options.rates or scale.rates, options.seeds or scale.seeds)
    folders = {name: base_folder(folder, name, shape) for name in families}
    works = {name: WorkFolder(folder, scale_of(scale, name, folders[name])) for name in families}
    failed: list[str] = []
    if not report:
        new = [name for name in families if not is_trained(folders[name])]
        hours = len(new) * (shape.training.steps * (spent(folder) or SECONDS_A_STEP) / 3600)
        hours += len(new) * adapters_hours(scale, cells)
        hours += sum(estimate_paper(works[name], cells).hours for name in families if name not in new)
        say(
            f"{experiment.title}: {len(families)} bases, of which {len(new)} are to be trained; {len(cells)} cells on "
            f"each. What is left takes about {duration(hours)} in one process."
        )
        if dry_run:
            return
        for name in families:
            try:
                train_base(folders[name], name, shape, demo / "base", say)
            except KeyboardInterrupt:
                say("Interrupted; the same command continues from its last save.")
                raise typer.Exit(130) from None
            say(f"{FAMILIES[name].title}: adapters")
            failed += run_jobs(works[name], cells, jobs)
    by_family: dict[str, Collected | None] = {
        name: collect(works[name], experiment, cells) if is_trained(folders[name]) else None for name in families
    }
    written = _write(by_family, works, folder, shape)
    table = bases_table(by_family)
    if markdown:
        print(table.markdown(), sentence_of(shape), sep="\n\n")
    else:
        print_table(screen(), table.rich())
        screen().print(sentence_of(shape), soft_wrap=True, highlight=False)
    if written:
        say(f"Results: {', '.join(printable(str(path)) for path in written)}.")
    if failed:
        raise typer.Exit(1)


def _write(
    by_family: dict[str, Collected | None], works: dict[str, WorkFolder], folder: Path, shape: BaseShape
) -> list[Path]:
    measured = {name: collected for name, collected in by_family.items() if collected is not None and collected.parts}
    if not measured:
        return []
    pages = []
    for name, collected in measured.items():
        pages.append(folder / f"bases-demo-{name}.html")
        write_whole(pages[-1], report_page(collected.parts[0].evaluation))
    content = {
        "format": "slim-paper-bases",
        "version": 1,
        "bases": sentence_of(shape),
        "families": {
            name: {"title": FAMILIES[name].title} | result_file(collected, works[name])
            for name, collected in measured.items()
        },
    }
    results = folder / "bases-demo.json"
    write_whole(results, json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
    return [results, *pages]
