# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core …`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .method import SlimConfig


app = typer.Typer(no_args_is_help=True, add_completion=False, help="SLIM: fine-tune without forgetting.")


@app.callback()
def main() -> None:
    """SLIM: fine-tune a language model without making it forget."""


@app.command()
def bench(
    width: Annotated[list[int], typer.Option(help="Sizes of the Linear; repeat for several.")] = [1024, 4096],  # noqa: B006
    tokens: Annotated[list[int], typer.Option(help="Tokens per forward; repeat for several.")] = [1, 16, 512],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each variant; the median counts.")] = 7,
    device: Annotated[str, typer.Option(help="cpu, cuda, or both where there is a GPU (all).")] = "all",
    merge: Annotated[str, typer.Option(help="Dynamic merging: fast or none.")] = "fast",
) -> None:
    """Time one adapted Linear: base, PEFT LoRA of equal total rank, SLIM, and a loop over experts, side by side."""
    import torch

    from .evaluation.speed import describe_machine, settings, time_setting

    available = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    if device != "all" and device not in available:
        raise typer.BadParameter(f"{device!r} is not here; choose all, {' or '.join(available)}.")
    config = SlimConfig(merge=merge)
    console = Console()
    console.print(describe_machine())
    console.print(
        f"{config.num_experts} experts of rank {config.r}, {config.num_identity} identity, top-{config.top_k}, "
        f"merge={merge}, p={config.mask_rate}; LoRA of rank {config.num_experts * config.r}; "
        f"medians of {rounds} rounds"
    )
    for setting in settings(available if device == "all" else [device], width, tokens):
        pass_name = "forward + backward" if setting.backward else "forward"
        dtype = str(setting.dtype).removeprefix("torch.")
        table = Table(title=f"{setting.device} {dtype}, C = {setting.width}, {setting.tokens} tokens, {pass_name}")
        for column in ("variant", "µs", "× base", "× PEFT LoRA"):
            table.add_column(column, justify="left" if column == "variant" else "right")
        for t in time_setting(setting, config, rounds):
            table.add_row(t.variant, f"{t.microseconds:.0f}", f"{t.to_base:.2f}", f"{t.to_lora:.2f}")
        console.print(table)
