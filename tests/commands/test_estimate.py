# SPDX-License-Identifier: Apache-2.0
"""`estimate` as a person calls it."""

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from slim_core.base import loading
from slim_core.cli import app
from tests.inference.conftest import folders


__all__ = ["folders"]


def run(*arguments):
    return CliRunner().invoke(app, ["estimate", *map(str, arguments)])


def test_a_base_that_fits(folders):
    result = run(folders.base, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("base needs about ") and result.stdout.endswith(" It fits.\n")
    assert "parameters in float32" in result.stdout
    assert "parameters in 4-bit nf4" in run(folders.base, "--load-4bit").stdout
    assert "parameters in 8-bit" in run(folders.base, "--load-8bit").stdout


def test_what_does_not_fit_or_is_not_there_is_one_sentence(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "device_memory", lambda device: (10, 20))
    result = run(folders.base, "--device", "cpu")
    assert result.exit_code == 1 and "cpu has 10 B free of 20 B" in result.stderr
    for arguments in ((tmp_path / "nothing",), (tmp_path,), (folders.base, "--load-4bit", "--load-8bit")):
        result = run(*arguments)
        assert result.exit_code == 1 and result.stderr.startswith("Error: ") and "Traceback" not in result.stderr


NAMES = {
    "a b": "(The base|SLIM_BASE is) 'a b',? .*neither a folder nor a Hub id",
    "": "The base '' is neither a folder nor a Hub id",
    "a" * 300: "is neither a folder nor a Hub id",
    "./" + "a" * 5000: r"(There is no folder|SLIM_BASE is) '?\./a",
    "~nosuchuser/x": "(There is no folder|SLIM_BASE is) '?~nosuchuser/x",
}


@pytest.mark.parametrize(("name", "words"), NAMES.items(), ids=["spaces", "empty", "long", "long path", "home"])
@pytest.mark.parametrize(
    "command", [["estimate"], ["compare", "Hi", "--base"], ["serve", "--base"]], ids=lambda c: c[0]
)
def test_a_name_of_nothing_is_one_sentence(command, name, words):
    if command[0] == "serve" and not name:
        pytest.skip("an empty setting is the demo")
    result = CliRunner().invoke(app, [*command, name])
    assert result.exit_code == 1 and re.match(f"Error: .*{words}.*\\.\n\\Z", result.stderr), result.stderr


def test_a_folder_has_no_revisions(folders):
    result = run(folders.base, "--revision", "a b")
    assert result.exit_code == 1 and "base is a folder, which has no revision 'a b'" in result.stderr


@pytest.mark.parametrize("fields", [{"num_hidden_layers": -1}, {"hidden_size": 0}, {"num_hidden_layers": 10**6}])
def test_a_config_of_nothing_or_too_much_is_one_sentence(fields, folders, tmp_path):
    shutil.copytree(folders.base, tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))
    result = run(tmp_path / "base")
    assert result.exit_code == 1
    assert f"The base model base cannot be loaded: `{next(iter(fields))}` in its config is" in result.stderr


def test_a_device_that_is_not_here_is_one_sentence(folders):
    result = run(folders.base, "--device", "evil")
    assert result.exit_code == 1 and "There is no device 'evil'" in result.stderr
