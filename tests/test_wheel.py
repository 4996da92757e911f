# SPDX-License-Identifier: Apache-2.0
"""The wheel, installed where there is no checkout: command, demo, page and API."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import urllib.request
import venv
from pathlib import Path

import pytest
from gradio_client import Client

from tests.declared import link, needed_by
from tests.waiting import until


ROOT = Path(__file__).resolve().parents[1]
QUESTION = "What is the capital of France?"


class Installed:
    """An environment with the wheel and only what it declares that it needs, and a folder outside the checkout."""

    def __init__(self, root: Path, wheel: Path, *extras: str) -> None:
        self.folder, self.home = root / "venv", root / "elsewhere"
        self.home.mkdir()
        venv.create(self.folder, with_pip=False)
        self.packages = Path(sysconfig.get_path("purelib", vars={"base": str(self.folder)}))
        link(needed_by(wheel, extras).values(), self.packages)
        self.bin = self.folder / ("Scripts" if os.name == "nt" else "bin")
        self.environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        self.environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
        # With its dependencies: pip looks whether their versions are those that the wheel asks for.
        what = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
        python = ["--python", str(self.bin / "python")]
        options = ["--no-index", "--no-compile", "--quiet", what]
        subprocess.run([sys.executable, "-m", "pip", *python, "install", *options], check=True, timeout=120)

    def start(self, *command: str) -> subprocess.Popen:
        path = shutil.which(command[0], path=str(self.bin))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([path, *command[1:]], cwd=self.home, env=self.environment, **pipes)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(root)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = root.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def core(wheel, tmp_path_factory) -> Installed:
    return Installed(tmp_path_factory.mktemp("core"), wheel)


@pytest.fixture(scope="module")
def with_app(wheel, tmp_path_factory) -> Installed:
    return Installed(tmp_path_factory.mktemp("app"), wheel, "app")


def test_the_command_answers_with_the_demo_that_the_wheel_brings(core):
    compare = core.start("slim", "compare", QUESTION, "--max-new-tokens", "12")
    said, _ = compare.communicate(timeout=120)
    assert compare.returncode == 0, said
    assert said.count("Paris") >= 2 and "bypasses LoRA" in said
    assert "Warning" not in said and "Loading weights" not in said


def test_the_demo_is_the_one_that_the_wheel_brings(core):
    where = "import slim_core.paths as p; print(p.__file__); print(p.DEMO)"
    printed, _ = core.start("python", "-c", where).communicate(timeout=60)
    assert printed.split() == [str(core.packages / "slim_core" / name) for name in ("paths.py", "assets/demo")]


@pytest.mark.parametrize(("package", "is_there"), [("rich", True), ("gradio", False), ("pytest", False)])
def test_only_what_is_declared_is_there(core, package, is_there):
    printed, _ = core.start(
        "python", "-c", f"import importlib.util as u; print(u.find_spec({package!r}))"
    ).communicate()
    assert (printed.strip() != "None") == is_there


def test_the_app_has_its_page_and_its_api(with_app):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    app = with_app.start("slim", "serve", "--port", str(port), "--device", "cpu")
    try:
        page = wait_for(address, app)
        assert "// The columns and the conversation." in page
        for style in (ROOT / "assets" / "webui").glob("*.css"):
            # The first line is that of every file.
            assert style.read_text(encoding="utf-8").splitlines()[1] in page, style.name
        answers = Client(address, verbose=False).predict(QUESTION, max_new_tokens=12, api_name="/compare")
        assert "Paris" in answers["base"]["text"] and set(answers) >= {"lora", "slim", "verdict"}
    finally:
        app.terminate()
        said, _ = app.communicate(timeout=60)
    assert "Traceback" not in said


def wait_for(address: str, app: subprocess.Popen) -> str:
    """The page, once it is there."""
    open_page = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def page() -> str:
        if app.poll() is not None:
            pytest.fail(f"The app did not start: {app.communicate()[0]}")
        try:
            with open_page(address, timeout=10) as answer:
                assert answer.status == 200
                return answer.read().decode("utf-8")
        except OSError:
            return ""

    return until(page, 120)
