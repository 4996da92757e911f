# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core …`."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .blas import one_thread_for_numpy
from .commands import adapter, bench, demo
from .commands.compare import compare
from .commands.console import at_home, refuse, screen
from .commands.estimate import estimate
from .commands.evaluate import EvaluateCommand, evaluate
from .commands.gate_proxy import gate_proxy
from .commands.methods import show_methods
from .commands.pairs import pairs
from .commands.paper import PaperCommand, paper
from .commands.serve import serve
from .noise import hush


app = typer.Typer(no_args_is_help=True, add_completion=False, help="SLIM: fine-tune without forgetting.")
app.add_typer(adapter.app, name="adapter")
app.add_typer(bench.app, name="bench")
app.add_typer(demo.app, name="demo")


@app.callback()
def main() -> None:
    """SLIM: fine-tune a language model without making it forget."""
    hush()
    one_thread_for_numpy()
    # A name may have characters that the terminal cannot show, or invalid ones; that must not end the command.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


app.command()(compare)
app.command()(estimate)
app.command(cls=EvaluateCommand)(evaluate)
app.command(cls=PaperCommand)(paper)
app.command()(serve)
app.command("gate-proxy")(gate_proxy)


DATA, ADAPTER, BUDGET, MACHINE = "Data", "Adapter", "Budget", "Machine"


@app.command()
def train(
    base: Annotated[str, typer.Option(help="Base model: folder or Hub id.")],
    data: Annotated[
        list[str], typer.Option(help="JSONL, JSON, CSV, TSV or Parquet file, or Hub data set; repeatable.")
    ],
    output: Annotated[Path, typer.Option(help="New folder for the adapter; several methods get a subfolder each.")],
    method: Annotated[
        list[str], typer.Option(help="slim, lora, dora or another of --list-methods; repeat to compare.")
    ] = ["slim"],  # noqa: B006
    list_methods: Annotated[
        bool,
        typer.Option("--list-methods", is_eager=True, callback=show_methods, help="List all methods and end."),
    ] = False,
    messages_column: Annotated[str | None, typer.Option(rich_help_panel=DATA, help="Column with messages.")] = None,
    prompt_column: Annotated[str | None, typer.Option(rich_help_panel=DATA, help="Column with questions.")] = None,
    completion_column: Annotated[str | None, typer.Option(rich_help_panel=DATA, help="Column with answers.")] = None,
    input_column: Annotated[
        str | None, typer.Option(rich_help_panel=DATA, help="Column appended to questions.")
    ] = None,
    text_column: Annotated[str | None, typer.Option(rich_help_panel=DATA, help="Column with plain text.")] = None,
    system_column: Annotated[
        str | None, typer.Option(rich_help_panel=DATA, help="Column with system messages.")
    ] = None,
    split: Annotated[str, typer.Option(rich_help_panel=DATA, help="Split of a Hub data set.")] = "train",
    subset: Annotated[str | None, typer.Option(rich_help_panel=DATA, help="Subset of a Hub data set.")] = None,
    revision: Annotated[str | None, typer.Option(rich_help_panel=DATA, help="Revision of a Hub data set.")] = None,
    validation: Annotated[list[str], typer.Option(rich_help_panel=DATA, help="Validation data; repeatable.")] = [],  # noqa: B006
    validation_split: Annotated[
        str | None, typer.Option(rich_help_panel=DATA, help="Split of the Hub data set for validation.")
    ] = None,
    validation_share: Annotated[
        float, typer.Option(rich_help_panel=DATA, help="Share of the data set aside for validation.")
    ] = 0.05,
    max_length: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=DATA, help="Maximum number of tokens per example. (default: 2048 or the model's limit)"
        ),
    ] = None,
    skip_long: Annotated[
        bool, typer.Option("--skip-long", rich_help_panel=DATA, help="Skip longer examples and report how many.")
    ] = False,
    rank: Annotated[int, typer.Option(rich_help_panel=ADAPTER, help="Rank of each LoRA expert.")] = 16,
    experts: Annotated[
        int, typer.Option(rich_help_panel=ADAPTER, help="Number of LoRA experts; a plain LoRA gets rank × this.")
    ] = 8,
    identity: Annotated[int, typer.Option(rich_help_panel=ADAPTER, help="Number of identity experts.")] = 2,
    top_k: Annotated[int, typer.Option(rich_help_panel=ADAPTER, help="Experts used per token.")] = 2,
    alpha: Annotated[
        float | None, typer.Option(rich_help_panel=ADAPTER, help="LoRA's alpha. (default: 2 × rank)")
    ] = None,
    dropout: Annotated[float, typer.Option(rich_help_panel=ADAPTER, help="Dropout before the experts.")] = 0.0,
    target: Annotated[
        list[str],
        typer.Option(rich_help_panel=ADAPTER, help="Linear to adapt, such as q_proj; repeatable. (default: all)"),
    ] = [],  # noqa: B006
    slim: Annotated[
        list[str], typer.Option(rich_help_panel=ADAPTER, help="Other SlimConfig field, as KEY=VALUE; repeatable.")
    ] = [],  # noqa: B006
    option: Annotated[
        list[str],
        typer.Option(
            rich_help_panel=ADAPTER,
            help="Option of another method, as METHOD.KEY=VALUE: disel.gate_bias=-5; repeatable.",
        ),
    ] = [],  # noqa: B006
    train_closing_token: Annotated[
        bool,
        typer.Option(
            "--train-closing-token", rich_help_panel=ADAPTER, help="Also train the token that closes answers."
        ),
    ] = False,
    epochs: Annotated[float, typer.Option(rich_help_panel=BUDGET, help="Passes over the data.")] = 2.0,
    max_steps: Annotated[
        int | None, typer.Option(rich_help_panel=BUDGET, help="Number of steps, instead of epochs.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(rich_help_panel=BUDGET, help="Peak learning rate.")] = 3e-4,
    batch_size: Annotated[int, typer.Option(rich_help_panel=BUDGET, help="Examples per step, over all devices.")] = 16,
    loss: Annotated[
        str, typer.Option(rich_help_panel=BUDGET, help="cross-entropy, eaft or mask-the-target, with any method.")
    ] = "cross-entropy",
    loss_weight: Annotated[
        float | None, typer.Option(rich_help_panel=BUDGET, help="Factor of what mask-the-target adds. (default: 1)")
    ] = None,
    early_stopping: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=BUDGET, help="End after so many validations without a lower loss, and keep the best."
        ),
    ] = None,
    validate_every: Annotated[
        int | None, typer.Option(rich_help_panel=BUDGET, help="Steps between validations. (default: each epoch)")
    ] = None,
    seed: Annotated[
        int, typer.Option(rich_help_panel=BUDGET, help="Random seed of split, order and initial weights.")
    ] = 42,
    micro_batch: Annotated[
        int | None, typer.Option(rich_help_panel=MACHINE, help="Examples per forward pass. (default: a whole step)")
    ] = None,
    four_bit: Annotated[
        bool, typer.Option("--four-bit", rich_help_panel=MACHINE, help="Load the base in 4 bits.")
    ] = False,
    bf16: Annotated[
        bool | None,
        typer.Option(rich_help_panel=MACHINE, help="Compute in bfloat16. (default: on GPUs that have it)"),
    ] = None,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option("--gradient-checkpointing", rich_help_panel=MACHINE, help="Save memory, at the cost of time."),
    ] = False,
    group_by_length: Annotated[
        bool,
        typer.Option(
            "--group-by-length",
            rich_help_panel=MACHINE,
            help="Put examples of similar length in one step, to save padding.",
        ),
    ] = False,
    base_revision: Annotated[str | None, typer.Option(rich_help_panel=MACHINE, help="Revision of the base.")] = None,
    log_every: Annotated[int, typer.Option(rich_help_panel=MACHINE, help="Steps between logs.")] = 10,
    save_every: Annotated[int, typer.Option(rich_help_panel=MACHINE, help="Steps between checkpoints.")] = 200,
    report_to: Annotated[
        list[str], typer.Option(rich_help_panel=MACHINE, help="Also log to tensorboard, wandb, …; repeatable.")
    ] = [],  # noqa: B006
    start_from: Annotated[
        str | None,
        typer.Option(rich_help_panel=ADAPTER, help="Folder of an adapter to go on from, of the same base and method."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", rich_help_panel=MACHINE, help="Resume an interrupted run.")
    ] = False,
) -> None:
    """Fine-tune an adapter on your own data.

    Ctrl-C saves a checkpoint and ends the run. For several GPUs, FSDP or DeepSpeed: accelerate launch -m slim_core
    train …

    The defaults are the paper's. Where the paper does not say, alpha is twice the rank, and the learning rate falls
    linearly after a warm-up of 3 % of the steps. LoRA and DoRA get SLIM's total rank, rank × experts.

    Other methods to compare with: docs/methods.md describes them, --list-methods lists them with their options.
    """
    from .training import Columns, TrainingError, TrainSettings
    from .training import train as run

    try:
        settings = TrainSettings(
            base=base,
            data=data,
            output=at_home(output),
            methods=method,
            columns=Columns(
                messages_column, prompt_column, completion_column, input_column, text_column, system_column
            ),
            split=split,
            subset=subset,
            revision=revision,
            validation=validation,
            validation_split=validation_split,
            validation_share=validation_share,
            max_length=max_length,
            skip_long=skip_long,
            base_revision=base_revision,
            four_bit=four_bit,
            r=rank,
            num_experts=experts,
            num_identity=identity,
            top_k=top_k,
            alpha=alpha,
            dropout=dropout,
            target_modules=target,
            slim=pairs(slim, "--slim"),
            options=_by_method(option),
            loss=loss,
            loss_weight=loss_weight,
            early_stopping=early_stopping,
            validate_every=validate_every,
            train_closing_token=train_closing_token,
            epochs=epochs,
            max_steps=max_steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            micro_batch=micro_batch,
            seed=seed,
            bf16=bf16,
            gradient_checkpointing=gradient_checkpointing,
            group_by_length=group_by_length,
            log_every=log_every,
            save_every=save_every,
            report_to=report_to,
            resume=resume,
            start_from=start_from,
        )
        outcome = run(settings, screen())
    except TrainingError as error:
        refuse(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if outcome.interrupted:
        hint = " Continue with --resume." if outcome.resumable else " There is no checkpoint yet to resume from."
        screen(stderr=True, soft_wrap=True).print(f"Interrupted; the training so far is saved.{hint}")
        raise typer.Exit(130)


def _by_method(texts: list[str]) -> dict[str, dict[str, Any]]:
    """METHOD.KEY=VALUE texts by method."""
    by_method: dict[str, dict[str, Any]] = {}
    for name, value in pairs(texts, "--option").items():
        method, separator, key = name.partition(".")
        if not separator:
            raise typer.BadParameter(f"--option takes METHOD.KEY=VALUE, such as disel.gate_bias=-5, not {name!r}.")
        by_method.setdefault(method, {})[key] = value
    return by_method
