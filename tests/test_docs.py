# SPDX-License-Identifier: Apache-2.0
"""README, docs and examples: links lead somewhere, commands exist, examples run."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from slim_core.cli import app


ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
EXAMPLES = ROOT / "examples"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
# What cannot be done where there is no network, or no card.
ONLINE = re.compile(r"pip install|docker build|git clone|Qwen/|HUB_ID")
ON_A_CARD = re.compile(r"--gpus")


def pages(test):
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)(test)


class Block(NamedTuple):
    """A fenced block: the line before it, its language, and what is in it."""

    before: str
    language: str
    text: str


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[Block]:
    all_blocks, text = [], text_of(page)
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        before = text[: match.start()].rstrip().rsplit("\n", 1)[-1]
        all_blocks.append(Block(before, *match.groups()))
    return [block for block in all_blocks if block.language == language]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


# ---- pages


def test_the_readme_is_short():
    assert len(text_of(README).splitlines()) <= 150


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    # PEFT's own tests, and names that stand for a new file.
    elsewhere = {"test_custom_models.py", "test_decoder_models.py", "webui/tabs/NAME.py", "assets/webui/NAME.js"}
    named = set(re.findall(r"`([\w/.]+\.(?:py|js|css|md|toml))`", prose(page))) - elsewhere
    assert not [name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in source_files())]


@cache
def source_files() -> list[str]:
    """Paths of the project's own files, from its root."""
    folders = [ROOT / name for name in ("slim_core", "assets", "tests", "docs", "examples", "deploy", "scripts")]
    paths = [*ROOT.glob("*"), *(path for folder in folders for path in folder.rglob("*.*"))]
    return [path.relative_to(ROOT).as_posix() for path in paths]


def test_the_readme_leads_to_every_page_and_example():
    linked = set(re.findall(r"\]\(([^)#]+)", text_of(README)))
    here = {str(path.relative_to(ROOT)) for path in (*PAGES[1:], *EXAMPLES.glob("*.*")) if path.suffix != ".jsonl"}
    assert here <= linked


def test_ci_runs_the_tests_as_the_readme_says():
    (command,) = re.findall(r"python -m pytest.*", "\n".join(block.text for block in blocks(README, "bash")))
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pages
def test_a_page_begins_with_what_it_is_about(page):
    if page != README:
        title, empty, about, end = text_of(page).splitlines()[:4]
        assert title.startswith("# ") and about.endswith((".", ":")) and (empty, end) == ("", "")


@pages
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists() and file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


@pages
def test_what_needs_a_network_or_a_card_says_so(page):
    for block in blocks(page, "bash") + blocks(page, "python"):
        assert not ONLINE.search(block.text) or "network" in block.before, block.text
        assert not ON_A_CARD.search(block.text) or "needs a GPU" in block.before, block.text


# ---- commands

PROGRAMS = {
    "python",
    "pip",
    "docker",
    "curl",
    "pre-commit",
    "lm_eval",
    "ray",
    "serve",
    ".ci/run",
    "scripts/gpu_check.sh",
}


def shell_lines(page: Path) -> list[str]:
    """The lines of the bash blocks; one that goes on in the next is one."""
    return "\n".join(block.text for block in blocks(page, "bash")).replace("\\\n", " ").splitlines()


@pages
def test_a_line_of_a_shell_block_is_one_command(page):
    for line in shell_lines(page):
        for command in line.split("&&"):
            words = shlex.split(command, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):  # a variable for this command
                words.pop(0)
            # What was wrapped like prose begins with a flag, or holds another command.
            assert not words or (words[0] in PROGRAMS and words[1:].count("python") == 0), line


def commands_of(page: Path) -> list[list[str]]:
    """Words after `python -m slim_core`, in bash blocks and in code between words."""
    return words_of([*shell_lines(page), *re.findall(r"`([^`\n]+)`", prose(page))])


def words_of(lines: list[str]) -> list[list[str]]:
    words = [shlex.split(line, comments=True) for line in lines if re.match(r"(python -m slim_core|slim) ", line)]
    return [line[line.index("slim_core") + 1 :] if "slim_core" in line else line[1:] for line in words]


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words name, and its arguments."""
    command, words = typer.main.get_command(app), list(words)
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"there is no command {words}"
        command = command.commands[words.pop(0)]
    return command, words


def check_command(words: list[str]) -> None:
    command, words = find_command(words)
    options = {name: option for option in command.params for name in (*option.opts, *option.secondary_opts)}
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert set(flags) <= {name for name in options if name.startswith("--")}, f"{command.name} has no such option"


@pages
def test_commands_exist(page):
    for words in commands_of(page):
        if words != ["…"]:
            check_command(words)


@pages
def test_whole_commands_can_be_parsed(page):
    """Those in bash blocks, with all their arguments and values."""
    for words in words_of(shell_lines(page)):
        command, arguments = find_command(words)
        with suppress(typer.Exit):  # an option that ends the command, such as --list-methods
            command.make_context(command.name, arguments)


def test_commands_are_looked_at():
    assert sum(len(commands_of(page)) for page in PAGES) > 15
    for wrong in (["conpare", "Hello"], ["adapter", "see"], ["demo", "verify", "--made-up"]):
        with pytest.raises(AssertionError):
            check_command(wrong)


def all_commands(command: Any, *words: str) -> Iterator[tuple[str, Any]]:
    """Every command with its name, such as `adapter check`."""
    if not hasattr(command, "commands"):
        yield " ".join(words), command
    else:
        for word, each in command.commands.items():
            yield from all_commands(each, *words, word)


COMMANDS = dict(all_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_named_on_a_page_about_its_command(name):
    about = re.compile(rf"(?:slim_core |slim |`){re.escape(name)}\b")
    text = "\n".join(text_of(page) for page in PAGES if about.search(text_of(page)))
    assert text, f"no page says what `{name}` is for"
    for option in COMMANDS[name].params:
        flags = [flag for flag in (*option.opts, *option.secondary_opts) if flag.startswith("--")]
        # The settings of `serve` are listed by their variables.
        names = [*flags, f"SLIM_{option.name.upper()}"] if name == "serve" else flags
        named = any(re.search(rf"{re.escape(each)}(?![\w-])", text) for each in names)
        assert named or not flags, f"no page about `{name}` says what {flags[0]} is for"


def test_the_training_example_is_a_command_that_exists():
    script = text_of(EXAMPLES / "train.sh").replace("\\\n", " ")
    (line,) = re.findall(r"^python -m slim_core (.+)$", script, re.MULTILINE)
    words = shlex.split(line)
    check_command(words)
    for option in ("--base", "--data"):
        assert (ROOT / words[words.index(option) + 1]).exists()
    assert os.access(EXAMPLES / "train.sh", os.X_OK)


# ---- Python


@pages
def test_python_can_be_parsed(page):
    for block in blocks(page, "python"):
        ast.parse(block.text)


NOTEBOOK = json.loads(text_of(EXAMPLES / "trace.ipynb"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
# Each as a script of its own; to read PEFT and transformers takes longer than all of them.
RUN = """
import runpy, sys
for path in sys.argv[1:]:
    print("==", path)
    runpy.run_path(path, run_name="__main__")
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, str]:
    """What each example prints, by its name."""
    notebook = tmp_path_factory.mktemp("notebook") / "trace.py"
    notebook.write_text("\n".join("".join(cell["source"]) for cell in CODE), encoding="utf-8")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN, "examples/quickstart.py", "examples/mixed_batch.py", str(notebook)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^== .*?(\w+)\.py$", done.stdout, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_quickstart_learns_saves_and_loads(said):
    said = said["quickstart"]
    first, last = map(float, re.findall(r"loss ([\d.]+)", said))
    assert last < first / 2
    assert "adapter_config.json adapter_model.safetensors" in said
    assert said.strip().endswith("gives the same numbers: True")


def test_three_answers_come_from_one_batch(said):
    answers = re.findall(r"^  (__base__|lora|slim) +(.+)$", said["mixed_batch"], re.MULTILINE)
    assert [name for name, _ in answers] == ["__base__", "lora", "slim"] * 2
    (_, base), (_, lora), (_, slim) = answers[:3]
    assert base == slim != lora


def test_the_notebook_shows_who_answered(said):
    assert NOTEBOOK["nbformat"] == 4 and all(cell["id"] for cell in NOTEBOOK["cells"])
    assert all(cell["outputs"] == [] for cell in CODE)
    trained, foreign = (
        [float(share) for share in re.findall(r"_proj +([\d.]+)", part)]
        for part in said["trace"].split("Name the largest bird.")
    )
    assert len(trained) == len(foreign) == 8
    assert max(trained) < min(foreign)
