# SPDX-License-Identifier: Apache-2.0
"""What is wrong at start is one sentence, told before torch, transformers and Gradio are imported."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slim_core.outside.private import PREFIX
from slim_core.webui import ready


ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "gradio", "peft")
STARTED = "All checks are done"
WAYS = {"app": ["app.py"], "serve": ["-m", "slim_core", "serve"]}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A checkout of its own, in which what takes long to import ends the program at once."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "slim_core", root / "slim_core", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "assets", root / "assets")
    shutil.copy(ROOT / "app.py", root)
    for name in HEAVY:
        (root / f"{name}.py").write_text(f"raise SystemExit({STARTED!r})\n")
    (root / "spaces.py").write_text("raise ImportError\n")
    return root


@pytest.fixture
def checkout(copy) -> Iterator[Path]:
    yield copy
    for kind in ("assets", "base", "lora", "slim", "temporary", "config.json"):
        path = copy / kind
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
    shutil.copytree(ROOT / "assets", copy / "assets")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(root: Path, way: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLIM_", "GRADIO_"))}
    clean |= {"SLIM_PORT": str(free_port()), "GRADIO_TEMP_DIR": str(root / "temporary"), "PYTHONPATH": ""}
    return subprocess.run(
        [sys.executable, *WAYS[way], *arguments], cwd=root, env=clean | environment, capture_output=True, text=True
    )


def said(done: subprocess.CompletedProcess) -> str:
    """The one line that is said."""
    assert done.returncode == 1 and done.stdout == "" and STARTED not in done.stderr, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


@pytest.mark.parametrize("way", WAYS)
def test_where_nothing_is_wrong_it_goes_on(checkout, way):
    done = start(checkout, way)
    assert STARTED in done.stderr and "Error" not in done.stderr and "Warning" not in done.stderr
    # Nothing of it stays behind.
    assert list((checkout / "temporary").iterdir()) == []


def cut(path: str, size: int = -40) -> Callable[[Path], None]:
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[:size])


def put(path: str, text: str = "") -> Callable[[Path], None]:
    return lambda root: (root / path).write_text(text)


def gone(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).unlink()


def older(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).write_text((root / path).read_text().replace("page 1.", "page 0."))


def folder(path: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / path).unlink()
        (root / path).mkdir()

    return change


def of_format(version: int) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "assets/demo/slim/adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": version}))

    return change


def longer(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).write_bytes((root / path).read_bytes() + b"more")


WEB, DEMO = "assets/webui/", "assets/demo/"
FILES = [
    (gone(WEB + "page.css"), "page.css cannot be read (no such file or directory); install SLIM again"),
    (put(WEB + "page.css"), "page.css is empty; install SLIM again"),
    (cut(WEB + "page.css"), "page.css is truncated or belongs to another version of SLIM; install SLIM again"),
    (gone(WEB + "routing.js"), "routing.js cannot be read (no such file or directory); install SLIM again"),
    (put(WEB + "routing.js", "\n\n"), "routing.js is empty; install SLIM again"),
    (cut(WEB + "routing.js", 500), "routing.js is truncated or belongs to another version of SLIM"),
    (older(WEB + "common.js"), "common.js is truncated or belongs to another version of SLIM"),
    (folder(WEB + "common.js"), "common.js is a folder and must be a file"),
    (gone("assets/slim-layer.svg"), "slim-layer.svg cannot be read"),
    (cut("assets/slim-layer.svg"), "slim-layer.svg is truncated"),
    (gone(DEMO + "base/model.safetensors"), "model.safetensors cannot be read (no such file or directory)"),
    (put(DEMO + "base/model.safetensors"), "model.safetensors is empty"),
    (cut(DEMO + "base/model.safetensors"), "model.safetensors has 4,661,976 bytes, but its header says"),
    (cut(DEMO + "base/model.safetensors", 100), "is not a safetensors file or is truncated: it has 100 bytes"),
    (cut(DEMO + "base/model.safetensors", 5), "is not a safetensors file or is truncated: it has 5 bytes"),
    (longer(DEMO + "lora/adapter_model.safetensors"), "bytes, but its header says"),
    (
        put(DEMO + "lora/adapter_model.safetensors", "<html>nothing here</html>"),
        "is not a safetensors file or is truncated",
    ),
    (put(DEMO + "slim/adapter_model.safetensors", "\2\0\0\0\0\0\0\0[]"), "its header is invalid"),
    (cut(DEMO + "slim/adapter_config.json"), "adapter_config.json is not valid JSON"),
    (put(DEMO + "lora/adapter_config.json", "[]"), "adapter_config.json must be a JSON object"),
    (put(DEMO + "lora/adapter_config.json", '{"r": 8}'), "lora/adapter_config.json has no `peft_type`, so it is not"),
    (put(DEMO + "slim/adapter_config.json", '{"peft_type": 5}'), "slim/adapter_config.json has no `peft_type`"),
    (gone(DEMO + "lora/adapter_config.json"), "adapter_config.json cannot be read"),
    (cut(DEMO + "base/tokenizer.json"), "tokenizer.json is not valid JSON"),
    (put(DEMO + "base/config.json"), "config.json is empty"),
    (put(DEMO + "base/tokenizer_config.json", "[" * 100_000), "nests lists and objects deeper than 64 levels"),
    (put(DEMO + "base/chat_template.jinja"), "chat_template.jinja is empty"),
    (cut(DEMO + "results.json"), "results.json is not valid JSON"),
    (put(DEMO + "results.json"), "results.json is empty"),
    (put(DEMO + "build.json", "none"), "build.json is not valid JSON"),
    (cut(DEMO + "examples.json"), "examples.json is not valid JSON"),
    (of_format(99), "adapter_config.json has format 99, but this version of SLIM reads formats up to"),
]


@pytest.mark.parametrize(("change", "sentence"), FILES, ids=[sentence[:50] for _, sentence in FILES])
def test_a_broken_file(checkout, change, sentence):
    change(checkout)
    line = said(start(checkout, "app"))
    assert sentence in line and line.endswith(".")


def test_private_folders_of_killed_processes_are_swept(checkout, tmp_path):
    left = tmp_path / f"{PREFIX}left"
    (left / "adapter").mkdir(parents=True)
    os.utime(left, (0, 0))
    assert STARTED in start(checkout, "app", TMPDIR=str(tmp_path)).stderr
    assert not left.exists()


SETTINGS = [
    ({"SLIM_PORT": "high"}, "SLIM_PORT is 'high'; it must be a whole number."),
    ({"SLIM_PORT": "0"}, "SLIM_PORT must be at least 1."),
    ({"SLIM_PORT": "99999"}, "SLIM_PORT is 99,999; a port is at most 65,535."),
    ({"SLIM_HOST": "no.such.host.invalid"}, "The app cannot be served at no.such.host.invalid"),
    ({"SLIM_HOST": "ä..b"}, "which is not a host name."),
    ({"SLIM_PROT": "80"}, "SLIM_PROT is not a setting; did you mean SLIM_PORT?"),
    ({"SLIM_AUTH_PASWORD": "x"}, "SLIM_AUTH_PASWORD is not a setting; did you mean SLIM_AUTH_PASSWORD?"),
    ({"SLIM_MAX_TOKENS": "9"}, "SLIM_MAX_TOKENS is not a setting; did you mean SLIM_MAX_NEW_TOKENS?"),
    ({"SLIM_MODEL": "a/b"}, "SLIM_MODEL is not a setting; did you mean SLIM_MODELS?"),
    ({"SLIM_DEVICE": "gpu"}, "SLIM_DEVICE is 'gpu'; use cpu, cuda, mps, xpu, or a numbered one such as cuda:1."),
    ({"SLIM_DEVICE": "cuda:"}, "SLIM_DEVICE is 'cuda:'; use cpu, cuda, mps, xpu"),
    ({"SLIM_MAX_NEW_TOKENS": "5000"}, "SLIM_MAX_NEW_TOKENS must be at most 4,096."),
    ({"SLIM_UPLOAD_SPACE": "1000"}, "SLIM_UPLOAD_SPACE is 1,000; it must be at least SLIM_MAX_UPLOAD, 64,000,000."),
    ({"SLIM_ADAPTERS": "/nothing"}, "SLIM_ADAPTERS is '/nothing'; it must be a folder."),
    (
        {"SLIM_API_ORIGINS": "*, example.org/chat"},
        "SLIM_API_ORIGINS names 'example.org/chat'; an origin is like https://chat.example.org or "
        "http://localhost:3000, without a path, or *.",
    ),
    (
        {"SLIM_BASE": "/nothing"},
        "SLIM_BASE is '/nothing', but there is no folder of that name; name a folder or a Hub id.",
    ),
    (
        {"SLIM_BASE": "https://huggingface.co/org/model-1.5/"},
        "which is neither a folder nor a Hub id; a Hub id is like org/model-1.5.",
    ),
    ({"SLIM_BASE": "https://example.org/model"}, "which is neither a folder nor a Hub id; a Hub id is like Qwen/"),
    ({"SLIM_BASE": "a/b/c"}, "SLIM_BASE is 'a/b/c', which is neither a folder nor a Hub id"),
    ({"SLIM_BASE": "my model"}, "SLIM_BASE is 'my model', which is neither a folder nor a Hub id"),
    (
        {"SLIM_BASE": "a/b", "SLIM_SLIM": "hf.co/a/b"},
        "SLIM_SLIM is 'hf.co/a/b', which is neither a folder nor a Hub id",
    ),
    ({"SLIM_BASE": "./app.py"}, "SLIM_BASE is './app.py', which is a file; name the folder that holds it."),
    ({"SLIM_BASE": "assets"}, "has no config.json; SLIM_BASE must be a folder of a base model."),
    ({"SLIM_BASE": "assets/demo/base", "SLIM_LORA": "~/nothing"}, "SLIM_LORA is '~/nothing', but there is no folder"),
    ({"SLIM_BASE": "assets/demo/base", "SLIM_SLIM": "assets"}, "SLIM_SLIM must be a folder of an adapter."),
    ({"SLIM_LORA": "assets/demo/lora"}, "An adapter needs its base model: set SLIM_BASE."),
    ({"SLIM_AUTH_USER": "ann"}, "set both or none."),
    ({"SLIM_LOAD_4BIT": "maybe"}, "SLIM_LOAD_4BIT is 'maybe'; say 1 or 0."),
    ({"GRADIO_SERVER_PORT": "high"}, "GRADIO_SERVER_PORT is 'high'; it must be a whole number."),
    ({"GRADIO_NUM_PORTS": "many"}, "GRADIO_NUM_PORTS is 'many'; it must be a whole number."),
    ({"GRADIO_TEMP_DIR": "app.py"}, "(file exists); name a folder that can be written to in GRADIO_TEMP_DIR."),
    ({"GRADIO_TEMP_DIR": "app.py/x"}, "(not a directory); name a folder that can be written to in GRADIO_TEMP_DIR."),
    ({"GRADIO_TEMP_DIR": "/proc/slim"}, "name a folder that can be written to in GRADIO_TEMP_DIR."),
]


@pytest.mark.parametrize(("environment", "sentence"), SETTINGS, ids=[sentence[:60] for _, sentence in SETTINGS])
def test_a_setting_that_cannot_be(checkout, environment, sentence):
    assert sentence in said(start(checkout, "app", **environment))


@pytest.mark.parametrize("way", WAYS)
def test_both_ways_to_start_say_the_same(checkout, way):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert said(start(checkout, way, SLIM_PORT=str(port))).startswith(
            f"The app cannot be served at 127.0.0.1, port {port} ("
        )
    assert said(start(checkout, way, SLIM_SESSION="5")) == "SLIM_SESSION is not a setting; did you mean SLIM_SESSIONS?"
    cut("assets/demo/slim/adapter_model.safetensors")(checkout)
    assert "bytes, but its header says" in said(start(checkout, way))


def test_an_argument_is_not_ignored(checkout):
    assert said(start(checkout, "app", "--port", "80")) == (
        "'--port' is not understood: app.py has no arguments. Use python -m slim_core serve, or SLIM_ variables."
    )


@pytest.mark.parametrize("way", WAYS)
def test_what_is_like_no_setting_is_a_warning(checkout, way):
    done = start(checkout, way, SLIM_WHATEVER="1", SLIM_TEST_DATA="x")
    assert done.stderr.splitlines()[0] == (
        "Warning: SLIM_WHATEVER is not a setting of this app; docs/deploy.md lists them."
    )
    assert STARTED in done.stderr and "TEST_DATA" not in done.stderr


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is closed to root")
def test_a_folder_that_may_not_be_written_to(checkout):
    (checkout / "temporary").mkdir(mode=0o500)
    assert "(permission denied); name a folder" in said(start(checkout, "app"))


def test_own_folders_are_checked_like_the_demo(checkout):
    for name in ("base", "lora", "slim"):
        shutil.copytree(checkout / "assets/demo" / name, checkout / name)
    own = {"SLIM_BASE": "base", "SLIM_LORA": "lora", "SLIM_SLIM": "slim"}
    assert STARTED in start(checkout, "app", **own).stderr
    for change, sentence in (
        (put("slim/adapter_config.json", '{"r": 8}'), "slim/adapter_config.json has no `peft_type`"),
        (put("lora/results.json", "{"), "lora/results.json is not valid JSON"),
        (
            gone("lora/adapter_config.json"),
            "lora has no adapter_config.json; SLIM_LORA must be a folder of an adapter.",
        ),
        (cut("base/model.safetensors"), "base/model.safetensors has 4,661,976 bytes"),
    ):
        change(checkout)
        assert sentence in said(start(checkout, "app", **own))


def test_the_format_is_the_one_that_the_method_writes():
    from slim_core.method.config import FORMAT_VERSION

    assert ready.FORMAT == FORMAT_VERSION
