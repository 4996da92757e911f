# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core demo build|verify`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .pairs import pairs


app = typer.Typer(no_args_is_help=True, help="The small model that ships with the project.")
Questions = Annotated[int, typer.Option(min=20, help="Test questions of each task.")]


@app.command()
def build(
    output: Annotated[Path | None, typer.Option(help="Folder of the demo. [default: assets/demo]")] = None,
    work: Annotated[
        Path, typer.Option(help="Folder for what is made on the way; a second call goes on there.")
    ] = Path("demo-work"),
    questions: Questions = 600,
    base: Annotated[list[str], typer.Option(help="FIELD=VALUE of the base's recipe; repeatable.")] = [],  # noqa: B006
    plan: Annotated[list[str], typer.Option(help="FIELD=VALUE of the adapters' plan; repeatable.")] = [],  # noqa: B006
) -> None:
    """Train the base, LoRA and SLIM from nothing, and measure them."""
    from ..demo.build import BuildError, build
    from ..demo.pretrain import Recipe
    from ..demo.sweep import Plan
    from ..demo.verify import DEMO
    from ..training import TrainingError

    console = Console()
    demo = output or DEMO
    if output is not None and output.exists() and any(output.iterdir()) and not (output / "base").is_dir():
        raise typer.BadParameter(f"{output} holds something else than a demo; name a new folder.")
    try:
        recipe = Recipe(**_fields(Recipe, base, "--base"))
        report = build(demo, work, recipe, Plan(**_fields(Plan, plan, "--plan")), console, questions)
    except (BuildError, TrainingError) as error:
        Console(stderr=True, soft_wrap=True).print(f"Error: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        report = None
    if report is None:
        Console(stderr=True).print("Interrupted; the same command goes on from here.")
        raise typer.Exit(130)
    show(demo, console)


@app.command()
def verify(
    demo: Annotated[Path | None, typer.Option(help="Folder of the demo. [default: assets/demo]")] = None,
    questions: Questions = 600,
    write: Annotated[bool, typer.Option(help="Write results.json. --no-write only compares with it.")] = True,
) -> None:
    """Measure the demo's weights again, on held-out questions."""
    from rich.progress import Progress

    from ..demo.measure import TASKS
    from ..demo.verify import DEMO, VARIANTS, differences, missing, save, verify

    console = Console()
    demo = demo or DEMO
    lacking = missing(demo)
    if lacking:
        message = f"Error: {demo} has no {lacking[0]}; make the demo with: python -m slim_core demo build"
        Console(stderr=True, soft_wrap=True).print(message, style="red", markup=False, highlight=False)
        raise typer.Exit(1)
    with Progress(console=console) as progress:
        task = progress.add_task("Test questions", total=len(TASKS) * len(VARIANTS))
        results = verify(demo, questions, report=lambda *_: progress.advance(task))
    if write:
        save(results, demo)
        show(demo, console)
        return
    found = differences(results, demo)
    for line in found:
        console.print(line)
    console.print("The stored results hold." if not found else "The stored results do not hold.")
    raise typer.Exit(1 if found else 0)


def show(demo: Path, console: Console) -> None:
    """Print what is stored: the sweep on validation questions, and the results on test questions."""
    from ..demo.verify import VARIANTS, load_report, load_results

    report = load_report(demo)
    if report is not None:
        tasks = list(report["sweep"][0]["tasks"])
        table = _table(
            f"Sweep, {report['validation_questions']} validation questions of each task, in %",
            ("method", "rate", "down-\nstream", "general", *tasks),
        )
        for row in report["sweep"]:
            chosen = report["chosen"][row["method"]] == row["rate"]
            values = [row["downstream"], row["general"], *(row["tasks"][task] for task in tasks)]
            table.add_row(row["method"], f"{row['rate']:g}", *map(_percent, values), style="bold" if chosen else "")
        console.print(table, "")
    results = load_results(demo)
    table = _table("Test questions, in %, with 95 % intervals", ("task", "n", *VARIANTS))
    for kind in ("general", "downstream"):
        for name, task in results["tasks"].items():
            if task["kind"] == kind:
                table.add_row(name, str(task["n"]), *(_interval(task[variant]) for variant in VARIANTS))
        table.add_row(f"all {kind}", "", *(_percent(results[kind][v]) for v in VARIANTS), style="bold")
    console.print(table)


def _table(title: str, columns: tuple[str, ...]) -> Table:
    """A table that fits into 80 columns."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("method", "task") else "right")
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(score: dict[str, float]) -> str:
    return f"{_percent(score['score'])} ({_percent(score['low'])} – {_percent(score['high'])})"


def _fields(kind: type, texts: list[str], flag: str) -> dict[str, Any]:
    values = pairs(texts, flag)
    names = [field.name for field in fields(kind) if field.name != "phases"]
    for name in values:
        if name not in names:
            raise typer.BadParameter(f"{kind.__name__} has no field {name!r}; there are {', '.join(names)}.")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
