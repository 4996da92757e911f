# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core paper …`: the paper's tables and figures, trained and measured here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import typer

from ..paths import DEMO
from .console import refuse
from .pairs import pairs
from .spread import SpreadCommand


FULL, RUN, SHOW = "Full scale", "Running", "Showing"


class PaperCommand(SpreadCommand):
    spread: ClassVar[frozenset[str]] = frozenset({"--only", "--rates", "--seeds", "--steps", "--downstream"})


def paper(
    experiment: Annotated[
        Literal[
            "table1",
            "table2",
            "ablation",
            "masking",
            "experts",
            "steps",
            "case-study",
            "noise",
            "overhead",
            "sequence",
            "bases",
        ],
        typer.Argument(help="Which table or figure.", show_default=False),
    ],
    scale: Annotated[
        Literal["demo", "full"],
        typer.Option(help="demo: the demo's world, on a CPU. full: a Hub base and the paper's data sets."),
    ] = "demo",
    only: Annotated[list[str], typer.Option(help="Only these rows, by name.")] = [],  # noqa: B006
    rates: Annotated[
        list[float], typer.Option(help="Learning rates; of several, the best on validation examples is used.")
    ] = [],  # noqa: B006
    seeds: Annotated[list[int], typer.Option(help="Training seeds. (default: 42 43 44)")] = [],  # noqa: B006
    steps: Annotated[
        list[int], typer.Option(help="Steps of each training; several numbers for the experiment steps.")
    ] = [],  # noqa: B006
    questions: Annotated[
        int | None, typer.Option(min=1, help="Test questions of each task. (default: 200 of the demo's, else all)")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model: folder or Hub id. (default: the demo's, or Qwen/Qwen3-0.6B)")
    ] = None,
    plan: Annotated[
        list[str], typer.Option(help="FIELD=VALUE of how the demo's adapters are trained; repeatable.")
    ] = [],  # noqa: B006
    base_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps that each base of the experiment bases is trained. (default: 2400)"),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(rich_help_panel=FULL, help="Folder with the data sets. (default: the Hub)")
    ] = None,
    downstream: Annotated[
        list[str],
        typer.Option(rich_help_panel=FULL, help="Data sets to train on. (default: openbookqa social_iqa boolq)"),
    ] = [],  # noqa: B006
    chat: Annotated[
        Path | None, typer.Option(rich_help_panel=FULL, help="JSONL file of general conversations, for noise.")
    ] = None,
    revision: Annotated[str | None, typer.Option(rich_help_panel=FULL, help="Version of the base.")] = None,
    load_4bit: Annotated[
        bool, typer.Option("--load-4bit", rich_help_panel=FULL, help="Base in 4 bits while training.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", rich_help_panel=FULL, help="Start although there is no GPU.")] = False,
    work: Annotated[
        Path,
        typer.Option(
            rich_help_panel=RUN, help="Working folder, for any number of experiments; running again continues."
        ),
    ] = Path("paper-work"),
    jobs: Annotated[int, typer.Option(rich_help_panel=RUN, min=1, help="Processes that train in parallel.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", rich_help_panel=RUN, help="Only say what would be done.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", rich_help_panel=SHOW, help="Only show what is finished; nothing is trained.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", rich_help_panel=SHOW, help="Tables in Markdown.")] = False,
    items: Annotated[
        int, typer.Option(rich_help_panel=SHOW, min=1, help="Questions of each task that case-study shows.")
    ] = 3,
) -> None:
    """Repeat a table or figure of the paper: train every method, measure all on the same questions, compare.

    What is finished stays in the working folder, and several processes may work in it. The results are there as one
    JSON file and pages.
    """
    from ..inference import EngineError
    from ..paper.bases import BaseShape
    from ..paper.runs import PaperError
    from ..training import TrainingError
    from .paper_bases import run_bases
    from .paper_run import Options, run_paper

    options = Options(
        experiment,
        only,
        rates,
        seeds,
        steps,
        questions,
        base,
        pairs(plan, "--plan"),
        data_dir,
        downstream,
        chat,
        revision,
        load_4bit,
    )
    try:
        if experiment == "bases":
            if scale == "full":
                raise PaperError("bases are trained on the demo's world; leave --scale full out.")
            shape = BaseShape() if base_steps is None else BaseShape(steps=base_steps)
            run_bases(options, DEMO, shape, work, jobs, dry_run, report, markdown)
            return
        if base_steps is not None:
            raise PaperError("--base-steps is for the experiment `bases`; leave it out.")
        run_paper(options, scale, DEMO, work, jobs, yes, dry_run, report, markdown, items)
    except (EngineError, TrainingError) as error:
        refuse(error)
