# SPDX-License-Identifier: Apache-2.0
"""How commands print. Names of files, models and fields are plain text, never markup, emojis or control codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from ..outside.errors import printable


WIDEST = 1_000  # characters of a line


def screen(**options: Any) -> Console:
    """A console on standard output (or standard error with `stderr=True`) for untrusted text.

    Args:
        options: of rich's Console.
    """
    return Console(markup=False, emoji=False, **options)


def print_table(console: Console, table: Table) -> None:
    """Print a table and an empty line; in a file or a pipe, which have no width, as wide as the table is."""
    if not console.is_terminal:
        whole = console.options.update(max_width=WIDEST)
        console.width = max(console.width, console.measure(table, options=whole).maximum)
    console.print(table, "")


def at_home(path: Path) -> Path:
    """A path with the home folder in place of a leading ~, which shells leave in --output=~/mine."""
    try:
        return path.expanduser()
    except RuntimeError:  # of an unknown user
        refuse(f"{path} begins with a user that is not on this machine; check it.")


def refuse(sentence: object) -> NoReturn:
    """Print why a command ends to standard error, on one line, and exit with code 1."""
    screen(stderr=True, soft_wrap=True).print(f"Error: {printable(str(sentence))}", style="red", highlight=False)
    raise typer.Exit(1) from None


def warn(sentence: object) -> None:
    """Print a warning to standard error, on one line."""
    screen(stderr=True, soft_wrap=True).print(f"Warning: {printable(str(sentence))}", highlight=False)
