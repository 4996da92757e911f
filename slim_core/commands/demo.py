# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core demo build|verify|report|examples`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..paths import DEMO
from .console import refuse, screen
from .pairs import pairs


app = typer.Typer(no_args_is_help=True, help="The small model that ships with the project.")
Questions = Annotated[int, typer.Option(min=20, help="Test questions of each task.")]


@app.command()
def build(
    output: Annotated[Path | None, typer.Option(help="Folder of the demo. (default: assets/demo)")] = None,
    work: Annotated[Path, typer.Option(help="Working folder; running the command again continues from it.")] = Path(
        "demo-work"
    ),
    questions: Questions = 600,
    base: Annotated[list[str], typer.Option(help="FIELD=VALUE of the base's recipe; repeatable.")] = [],  # noqa: B006
    conversations: Annotated[
        list[str], typer.Option(help="FIELD=VALUE of how the base learns conversations; repeatable.")
    ] = [],  # noqa: B006
    plan: Annotated[list[str], typer.Option(help="FIELD=VALUE of the adapters' plan; repeatable.")] = [],  # noqa: B006
) -> None:
    """Train the base, LoRA and SLIM from scratch, and measure them."""
    from transformers.utils.logging import disable_progress_bar

    from ..demo.build import BuildError, build
    from ..demo.recipe import Conversations, Recipe
    from ..demo.trial import TrialPlan
    from ..training import TrainingError

    disable_progress_bar()  # there is one of our own
    console = screen()
    demo = output or DEMO
    if output is not None and output.exists() and any(output.iterdir()) and not (output / "base").is_dir():
        raise typer.BadParameter(f"{output} holds something other than a demo; name a new folder.")
    try:
        recipe = Recipe(**_fields(Recipe, base, "--base"))
        talks = Conversations(**_fields(Conversations, conversations, "--conversations"))
        report = build(demo, work, recipe, talks, TrialPlan(**_fields(TrialPlan, plan, "--plan")), console, questions)
    except (BuildError, TrainingError) as error:
        refuse(error)
    except KeyboardInterrupt:
        report = None
    if report is None:
        screen(stderr=True).print("Interrupted; the same command continues from here.")
        raise typer.Exit(130)
    _show(demo, console)


@app.command()
def verify(
    demo: Annotated[Path | None, typer.Option(help="Folder of the demo. (default: assets/demo)")] = None,
    questions: Questions = 600,
    write: Annotated[
        bool, typer.Option(help="Write results.json and the model cards. --no-write only compares.")
    ] = True,
) -> None:
    """Measure the demo's weights again, on held-out questions."""
    import torch
    from rich.progress import Progress
    from transformers.utils.logging import disable_progress_bar

    from ..demo.cards import write_cards
    from ..demo.stored import save
    from ..demo.verify import differences, jobs, sample, verify

    disable_progress_bar()  # there is one of our own
    console = screen()
    demo = _complete(demo)
    if not write:
        problems = differences(sample(demo, questions), demo)
        for line in problems:
            console.print(line)
        console.print("The stored results are confirmed." if not problems else "The stored results are not confirmed.")
        raise typer.Exit(1 if problems else 0)
    workers = 1 if torch.cuda.is_available() else torch.get_num_threads()
    with Progress(console=console) as progress:
        task = progress.add_task("Test questions", total=jobs(demo))
        results = verify(demo, questions, workers=workers, report=lambda _: progress.advance(task))
    save(results, demo)
    write_cards(demo)
    _show(demo, console)


@app.command()
def report(
    demo: Annotated[Path | None, typer.Option(help="Folder of the demo. (default: assets/demo)")] = None,
    markdown: Annotated[bool, typer.Option(help="Print Markdown.")] = False,
) -> None:
    """Print what is stored about the demo: how it was chosen and what was measured."""
    _show(_complete(demo), screen(), markdown)


@app.command()
def examples(
    demo: Annotated[Path | None, typer.Option(help="Folder of the demo. (default: assets/demo)")] = None,
    write: Annotated[bool, typer.Option(help="Write examples.json. --no-write only prints what was tried.")] = True,
) -> None:
    """Choose the app's examples for new weights: prompts for which base, LoRA and SLIM differ as intended."""
    from transformers.utils.logging import disable_progress_bar

    from ..demo.showcase import choose, save_examples

    disable_progress_bar()
    demo = _complete(demo)
    # Lines begin with + if the prompt shows the intended difference.
    chosen = choose(demo, print)
    print(f"{len(chosen['pairs'])} pairs and {len(chosen['alone'])} others show something.")
    if write:
        print(f"Written: {save_examples(chosen, demo)}")


def _complete(demo: Path | None) -> Path:
    """The folder of the demo; fails if its weights are missing."""
    from ..demo.verify import missing

    demo = demo or DEMO
    lacking = missing(demo)
    if lacking:
        refuse(f"{demo} has no {lacking[0]}; make the demo with: python -m slim_core demo build")
    return demo


def _show(demo: Path, console: Console, markdown: bool = False) -> None:
    from ..demo.report import tables
    from ..demo.stored import load_report, load_results

    for table in tables(load_results(demo), load_report(demo)):
        if markdown:
            print(table.markdown(), end="\n\n")
        else:
            console.print(table.rich(), "")


def _fields(kind: type, texts: list[str], flag: str) -> dict[str, Any]:
    values = pairs(texts, flag)
    names = [field.name for field in fields(kind) if field.name != "phases"]
    for name in values:
        if name not in names:
            raise typer.BadParameter(f"{kind.__name__} has no field {name!r}; there are {', '.join(names)}.")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
