# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core bench-compare`: what three answers in one batch cost."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from .console import printable, refuse, screen


def bench_compare(
    base: Annotated[str | None, typer.Option(help="Base model. (default: a random Llama)")] = None,
    lora: Annotated[str | None, typer.Option(help="LoRA for this base.")] = None,
    slim: Annotated[str | None, typer.Option(help="SLIM adapter for this base.")] = None,
    width: Annotated[int, typer.Option(help="Width of the random Llama.")] = 192,
    layers: Annotated[int, typer.Option(help="Layers of the random Llama.")] = 4,
    rank: Annotated[int, typer.Option(help="Rank of each expert on the random Llama; the LoRA has 8 times this.")] = 4,
    scope: Annotated[Literal["linear", "block"], typer.Option(help="router_scope for the random Llama.")] = "linear",
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens per answer.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds per way; the median is reported.")] = 7,
    prompt: Annotated[str, typer.Option(help="The question.")] = "What is the capital of Peru?",
) -> None:
    """Time base, LoRA and SLIM in one batch, compared with the base alone and with separate runs."""
    from rich.table import Table

    from ..demo.chat import train_tokenizer
    from ..evaluation.compare_speed import experts_used, random_engine, time_ways
    from ..evaluation.speed import describe_machine
    from ..inference import EngineError, load_engine
    from ..method import SlimConfig

    console = screen()
    try:
        if base is None:
            config = SlimConfig(r=rank, router_scope=scope, target_modules="all-linear", init_weights=False)
            engine = random_engine(train_tokenizer(), width, layers, config, device)
        else:
            engine = load_engine(base, lora=lora, slim=slim, device=device)
    except EngineError as error:
        refuse(error)
    console.print(describe_machine())
    adapters = "; ".join(f"{variant.label} {variant.detail}" for variant in engine.variants[1:])
    console.print(f"{printable(engine.info.name)}, {engine.info.dtype}; {adapters}; {tokens} tokens, {rounds} rounds")
    for name, experts in experts_used(engine, prompt, tokens).items():
        console.print(f"{name}: a token gets {experts:.2f} LoRA experts in each Linear")
    table = Table()
    for column in ("answers", "ms a token", "× base alone", "× one after another"):
        table.add_column(column, justify="left" if column == "answers" else "right")
    for way in time_ways(engine, prompt, tokens, rounds):
        table.add_row(way.name, f"{way.milliseconds:.2f}", f"{way.to_base:.2f}", f"{way.to_runs:.2f}")
    console.print(table)
