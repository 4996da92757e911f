# SPDX-License-Identifier: Apache-2.0
"""`estimate` as a person calls it."""

from typer.testing import CliRunner

from slim_core.cli import app
from slim_core.inference import loading
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
