# SPDX-License-Identifier: Apache-2.0
"""`train --list-methods`: what the registry of methods knows."""

from __future__ import annotations

import typer

from .console import screen


def show_methods(wanted: bool) -> None:
    """Print each method with its options and end the command, if that was asked for."""
    if not wanted:
        return
    from ..baselines import METHODS

    width = max(map(len, METHODS))
    out = screen(soft_wrap=True, highlight=False)
    for name, method in METHODS.items():
        out.print(f"{name:{width}}  {method.title}")
        if options := sorted(method.option_names()):
            out.print(f"{'':{width}}  --option {name}.KEY=VALUE, with KEY one of {', '.join(options)}")
    raise typer.Exit
