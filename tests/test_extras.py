# SPDX-License-Identifier: Apache-2.0
"""What works without the packages of an extra, and what is said where one is needed."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from slim_core.cli import app
from slim_core.extras import EXTRAS
from slim_core.paths import DEMO


ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WITHOUT = "import sys, runpy; sys.modules.update(dict.fromkeys({names})); runpy.{call}"
MODULE = "run_module('slim_core', run_name='__main__', alter_sys=True)"


def without(names: list[str], *arguments: str, call: str = MODULE) -> subprocess.CompletedProcess[str]:
    """Run a command as if packages were not installed."""
    code = WITHOUT.format(names=names, call=call)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_the_requirements_are_those_of_the_project_with_all_extras():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = {line for line in lines if line and not line.startswith("#")}
    optional = dict(PROJECT["optional-dependencies"])
    del optional["ray"]
    assert optional.pop("all") == [f"{PROJECT['name']}[{','.join(optional)}]"]
    extras = {line: extra for extra, lines in optional.items() for line in lines}
    assert required == {*PROJECT["dependencies"], *extras}
    assert {re.match(r"\w+", line)[0]: extra for line, extra in extras.items()} == EXTRAS


# What a declared package is made of: its version is that package's choice.
PARTS = dict.fromkeys(("anyio", "pydantic", "pydantic_core", "starlette"), "fastapi") | {"tokenizers": "transformers"}
PACKAGES = {"yaml": "pyyaml"}  # that are not called as they are imported
NEED_AN_EXTRA = {"serving", "webui"}


def third_party(nodes: Iterable[ast.AST]) -> set[str]:
    """The packages that are imported, as pyproject.toml names them."""
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    roots = {name.split(".")[0] for name in names} - {"slim_core", *sys.stdlib_module_names}
    roots = {PARTS.get(root, root) for root in roots}
    return {PACKAGES.get(root, root).replace("_", "-") for root in roots}


def names_of(lines: Iterable[str]) -> set[str]:
    return {re.match(r"[\w-]+", line)[0] for line in lines}


def test_what_is_imported_is_declared():
    core = names_of(PROJECT["dependencies"])
    for path in (ROOT / "slim_core").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert third_party([*ast.walk(tree)]) <= core | {*EXTRAS}, path
        if NEED_AN_EXTRA.isdisjoint(path.parts):
            assert third_party(tree.body) <= core, f"{path} can be imported only with an extra"


def test_comparing_needs_no_extra_and_says_nothing_but_the_answers():
    done = without([*EXTRAS, "pandas"], "compare", "What is the capital of France?", "--max-new-tokens", "12")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Paris" in done.stdout


@pytest.mark.parametrize("call", [MODULE, "run_path('app.py', run_name='__main__')"])
def test_the_app_needs_gradio(call):
    done = without(["gradio"], *(["serve"] if call is MODULE else []), call=call)
    assert done.returncode == 1
    assert done.stderr == 'Error: The app needs gradio; install it with: pip install "slim-core[app]"\n'


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("package", "data", "what"),
    [
        ("datasets", "me/questions", "The data set me/questions"),
        ("pyarrow", "{}/a.parquet", "a.parquet, a Parquet file,"),
    ],
)
def test_some_data_need_a_package(package, data, what, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    data = data.format(tmp_path)
    said = refused("train", "--base", DEMO / "base", "--data", data, "--output", tmp_path / "out")
    assert said == f'Error: {what} needs {package}; install it with: pip install "slim-core[train]"'


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (("compare", "Hello", "--load-4bit", "--base", DEMO / "base"), "base in 4 bits"),
        (("estimate", DEMO / "base", "--load-8bit"), "base in 8 bits"),
        (("train", "--four-bit", "--base", DEMO / "base"), f"{DEMO / 'base'} in 4 or 8 bits"),
    ],
)
def test_fewer_bits_need_bitsandbytes(command, what, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    if command[0] == "train":
        (tmp_path / "a.jsonl").write_text('{"prompt": "Hello", "completion": "Hi"}\n' * 4)
        command = (*command, "--data", tmp_path / "a.jsonl", "--validation-share", 0, "--output", tmp_path / "out")
    assert refused(*command) == f'Error: {what} needs bitsandbytes; install it with: pip install "slim-core[quant]"'
