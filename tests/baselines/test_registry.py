# SPDX-License-Identifier: Apache-2.0
"""The registry is the only list of methods: the command and the docs name all of it."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from slim_core.baselines import METHODS
from slim_core.cli import app
from tests.test_docs import ROOT


def test_the_command_lists_every_method_with_its_options():
    result = CliRunner().invoke(app, ["train", "--list-methods"])
    assert result.exit_code == 0
    for name, method in METHODS.items():
        assert re.search(rf"^{name} +{re.escape(method.title)}$", result.stdout, re.MULTILINE)
        options = re.search(rf"--option {name}\.KEY=VALUE, with KEY one of (.*)$", result.stdout, re.MULTILINE)
        assert set(options[1].split(", ") if options else ()) == method.option_names()


@pytest.mark.parametrize("name", METHODS)
def test_the_docs_have_a_row_for_every_method(name):
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    named = [word for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for word in re.findall(r"`(.+?)`", row)]
    assert named.count(name) == 1, f"docs/methods.md needs a row for `{name}` in its table of methods"
