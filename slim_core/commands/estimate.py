# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core estimate`: what a base model would need, from its config alone."""

from __future__ import annotations

from typing import Annotated

import typer

from ..outside.errors import printable
from .console import refuse, screen


def estimate(
    base: Annotated[str, typer.Argument(help="Base model: folder or Hub id.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Revision of the base on the Hub.")] = None,
    load_4bit: Annotated[bool, typer.Option("--load-4bit", help="Load the base in 4 bits.")] = False,
    load_8bit: Annotated[bool, typer.Option("--load-8bit", help="Load the base in 8 bits.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps. (default: a GPU if there is one)")] = None,
) -> None:
    """Say how much memory a base model needs and whether it is available. No weights are downloaded or loaded."""
    from ..base.files import base_files
    from ..base.formatting import size
    from ..base.loading import bits_of, need_sentence, plan
    from ..inference import BaseChoice, EngineError

    console = screen(soft_wrap=True, highlight=False)
    try:
        choice = BaseChoice(base, revision, bits_of(load_4bit, load_8bit))
        with base_files(choice) as files:
            need = plan(choice, files.config(), device).need
        fetched = f" {size(files.size)} would be fetched." if files.size else ""
        console.print(f"{printable(choice.label)} needs {need_sentence(need)}. It fits.{fetched}")
    except EngineError as error:
        refuse(error)
