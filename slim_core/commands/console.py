# SPDX-License-Identifier: Apache-2.0
"""How commands print. Names of files, models and fields are text: nothing in one is markup, a picture or a control."""

from __future__ import annotations

from typing import Any, NoReturn

import typer
from rich.console import Console


def screen(**options: Any) -> Console:
    """Standard output, or with `stderr=True` the other, for texts that come from outside.

    Args:
        options: of rich's Console.
    """
    return Console(markup=False, emoji=False, **options)


def refuse(sentence: object) -> NoReturn:
    """Say on standard error why a command ends, on one line, and end it with code 1."""
    screen(stderr=True, soft_wrap=True).print(f"Error: {printable(str(sentence))}", style="red", highlight=False)
    raise typer.Exit(1) from None


def warn(sentence: object) -> None:
    """Say on standard error, on one line, what a command does not end for."""
    screen(stderr=True, soft_wrap=True).print(f"Warning: {printable(str(sentence))}", highlight=False)


def printable(text: str) -> str:
    """A text with escapes for what would move the cursor, colour what follows, or be no character at all."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
