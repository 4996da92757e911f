# SPDX-License-Identifier: Apache-2.0
"""Names of any kind come out of the commands as they went in, on one line."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import typer
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from slim_core.cli import app
from slim_core.commands.console import print_table, refuse, screen
from slim_core.demo.report import Table as TextTable
from slim_core.outside.errors import printable


PACKAGE = Path(__file__).resolve().parents[2] / "slim_core"
NAMES = {
    ":train:": ":train:",
    "[bold]b[/bold]": "[bold]b[/bold]",
    "[/]": "[/]",
    "[link=file:/etc]a": "[link=file:/etc]a",
    "a\nb": r"a\nb",
    "a\rb": r"a\rb",
    "a\x1b[31mb": r"a\x1b[31mb",
    "a\x9bb": r"a\x9bb",
    "\u202egpj.exe": r"\u202egpj.exe",
    "a\udcffb": r"a\udcffb",
    "日本 é 🚆 ’": "日本 é 🚆 ’",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text(name, capsys):
    with pytest.raises(typer.Exit) as ended:
        refuse(name)
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == f"Error: {NAMES[name]}\n"
    table = Table(title=printable(name))
    table.add_column(printable(name))
    table.add_row(printable(name))
    screen(width=100).print(table)
    assert capsys.readouterr().out.count(NAMES[name]) == 3


@pytest.mark.parametrize("name", [name for name in NAMES if "\udcff" not in name])
@pytest.mark.parametrize(
    "arguments",
    [
        ("adapter", "check"),
        ("adapter", "info"),
        ("estimate",),
        ("demo", "report", "--demo"),
        ("compare", "hello", "--base"),
        ("bench", "compare", "--base"),
    ],
)
def test_the_commands_refuse_in_one_line_that_holds_the_name(arguments, name):
    result = CliRunner().invoke(app, [*arguments, f"./nowhere/{name}"])
    assert result.exit_code == 1, result.output
    said = result.stderr + result.stdout
    assert "nowhere" in said and NAMES[name] in said.replace("\\\\", "\\")
    assert len(result.stderr.splitlines()) <= 1 and "Traceback" not in said


def test_there_is_no_other_console():
    """A console of rich's own default would make markup and pictures of names."""
    for path in (PACKAGE / "cli.py", *(PACKAGE / "commands").glob("*.py")):
        if path.name != "console.py":
            assert " Console(" not in path.read_text(encoding="utf-8"), path.name


def test_a_table_in_a_pipe_is_as_wide_as_it_needs_to_be_and_none_is_cut_off():
    cells = ["97.0 (95.5–98.3)"] * 6
    table = TextTable("Scores", [f"column {i}" for i in range(6)])
    table.add(*cells)
    piped, narrow = (Console(file=io.StringIO(), width=80, force_terminal=terminal) for terminal in (False, True))
    for console in (piped, narrow):
        print_table(console, table.rich())
    assert " ".join(cells) in piped.file.getvalue()
    written = narrow.file.getvalue()
    assert "…" not in written and written.count("3)") == 6
    assert max(len(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in written.splitlines()) <= 80
