# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core evaluate`: what adapters learned and what they forgot, on tasks or on prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import typer

from .console import refuse
from .spread import SpreadCommand


TASKS, MACHINE = "Tasks", "Machine"


class EvaluateCommand(SpreadCommand):
    spread: ClassVar[frozenset[str]] = frozenset({"--adapters", "--tasks", "--strengths", "--quantiles", "--reuse"})


def evaluate(
    base: Annotated[str | None, typer.Option(help="Base model: folder or Hub id. (default: the demo)")] = None,
    adapters: Annotated[
        list[str],
        typer.Option(
            help="Folders or Hub ids, each also as NAME=FOLDER; NAME@SEED for a training seed. (default: the demo's)"
        ),
    ] = [],  # noqa: B006
    tasks: Annotated[
        list[str],
        typer.Option(
            help="Names (paper, demo, openbookqa, …), task files (.yaml), questions (.jsonl, …) or texts (.txt); "
            "general: or downstream: before a name."
        ),
    ] = [],  # noqa: B006
    output: Annotated[
        Path, typer.Option(help="New .json file for the results; the report is written next to it as .html.")
    ] = Path("evaluation.json"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted evaluation.")] = False,
    reuse: Annotated[
        list[Path],
        typer.Option(help="Results of earlier evaluations; what the same adapters answered there is taken over."),
    ] = [],  # noqa: B006
    prompts: Annotated[
        Path | None,
        typer.Option(help="In place of tasks, prompts without right answers: .txt, .csv, .json, .jsonl."),
    ] = None,
    strengths: Annotated[
        list[float],
        typer.Option(help="More rows of each adapter with a gate, at these strengths; 0 forces it open."),
    ] = [],  # noqa: B006
    quantiles: Annotated[
        list[float],
        typer.Option(
            help="More rows of each adapter with a gate, which begins to close beyond these shares of its data."
        ),
    ] = [],  # noqa: B006
    sequence: Annotated[
        bool, typer.Option("--sequence", help="The adapters are stages, each trained on the next downstream task.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(rich_help_panel=TASKS, min=1, help="Questions drawn of each task. (default: all)")
    ] = None,
    scoring: Annotated[
        Literal["standard", "letters", "likelihood", "written"],
        typer.Option(rich_help_panel=TASKS, help="How questions with options are scored."),
    ] = "standard",
    chat: Annotated[
        bool | None, typer.Option(rich_help_panel=TASKS, help="Through the chat template. (default: as the task is)")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(rich_help_panel=TASKS, min=0, help="Solved examples first. (default: as the task is)")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(rich_help_panel=TASKS, help="Folder with the data sets. (default: the Hub)")
    ] = None,
    trained_form: Annotated[
        str | None,
        typer.Option(rich_help_panel=TASKS, help="Pattern of trained answers, for open_questions."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(rich_help_panel=TASKS, min=1, help="Longest answer to --prompts.")
    ] = 256,
    system: Annotated[str | None, typer.Option(rich_help_panel=TASKS, help="System message for --prompts.")] = None,
    batch_size: Annotated[
        int, typer.Option(rich_help_panel=MACHINE, min=1, help="Items solved together, each by all variants.")
    ] = 8,
    revision: Annotated[str | None, typer.Option(rich_help_panel=MACHINE, help="Version of the base.")] = None,
    load_4bit: Annotated[bool, typer.Option("--load-4bit", rich_help_panel=MACHINE, help="Base in 4 bits.")] = False,
    load_8bit: Annotated[bool, typer.Option("--load-8bit", rich_help_panel=MACHINE, help="Base in 8 bits.")] = False,
    device: Annotated[
        str | None, typer.Option(rich_help_panel=MACHINE, help="cpu, cuda, mps. (default: a GPU if there is one)")
    ] = None,
) -> None:
    """Measure what adapters learned and what they forgot: all of them and the base as rows of one batch.

    Ctrl-C keeps what is solved; --resume continues. Without --tasks, the demo's tasks.
    """
    from ..evaluation.tasks import TRAINED_FORM, Asking
    from ..inference import EngineError, load_engine
    from .evaluate_run import Prompting, TaskRun, adapters_of, attach, chosen_tasks

    try:
        # Errors in a file are reported before the model is loaded.
        named = adapters_of(base, adapters)
        if prompts is not None:
            if tasks or reuse:
                raise EngineError(f"Name {'--tasks' if tasks else '--reuse'} or --prompts, not both.")
            work: Prompting | TaskRun = Prompting.read(prompts, output, system or "", max_new_tokens)
        else:
            asking = Asking(scoring, chat, None, limit, shots)
            chosen = chosen_tasks(base, tasks, asking, data_dir, trained_form or TRAINED_FORM)
            work = TaskRun.prepare(chosen, output, resume, sequence, batch_size, reuse)
        engine = load_engine(named.base, revision=revision, device=device, four_bit=load_4bit, eight_bit=load_8bit)
        work.run(engine, attach(engine, named, strengths, quantiles))
    except EngineError as error:
        refuse(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
