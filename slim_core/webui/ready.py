# SPDX-License-Identifier: Apache-2.0
"""Startup checks before anything large is imported: files, folders, the address."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path

from ..outside.errors import AdapterError, megabytes, quoted, reason
from ..outside.private import sweep_private_folders
from ..outside.strict_json import read_object
from ..paths import ASSETS, DEMO
from .config import Config, ConfigError, unknown, variable
from .http.process_folder import process_folder


SCRIPTS = (
    "common", "kept", "keeper", "address", "strip", "gate", "meter", "vote", "transcript", "curve", "heatmap",
    "picture", "routing", "detail", "drift", "mailbox", "landing", "plane", "forgetting", "facts", "adapters",
    "model", "many", "evaluation",
)  # fmt: skip
STYLES = ("page", "compare", "landing", "routing", "adapters", "many", "evaluation")
# The last line of each script and style. A file without it is truncated, or belongs to another version of the page.
END = "/* The end of a part of SLIM's page 1. */"
FIGURE = "slim-layer.svg"
AGAIN = "install SLIM again, or check the file out again"

# The files in a base's and an adapter's folder that are checked when the app starts.
BASE = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
STORED = ("results.json", "build.json", "examples.json")
INDEX = "model.safetensors.index.json"
# The newest format of a SLIM adapter; the method, which knows it, takes seconds to import.
FORMAT = 4
DEPTH, MOST_JSON, MOST_HEADER = 64, 200_000_000, 100_000_000
# What begins like this can only name a folder, even if that is missing.
FOLDER = re.compile(r"[./~\\]|[A-Za-z]:[/\\]")
HUB = "https://huggingface.co/"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def check_start(config: Config, demo: Path = DEMO, assets: Path = ASSETS, *, page: bool = True) -> list[str]:
    """Check everything that users can change before torch, transformers and Gradio are imported, which is slow.

    Args:
        config: the settings.
        demo: the demo's folder.
        assets: the folder of the page's parts.
        page: whether the page is served.

    Returns:
        Warnings: sentences about what is odd but does not prevent the start.

    Raises:
        ConfigError: with a sentence about the first thing that is wrong.
    """
    check_address(config)
    sweep_private_folders()
    if page:
        process_folder(config.upload_seconds)
        for name in (*(f"{name}.css" for name in STYLES), *(f"{name}.js" for name in SCRIPTS)):
            web_asset(name, assets)
        if "</svg>" not in _text(assets / FIGURE, AGAIN)[-20:]:
            raise ConfigError(f"{assets / FIGURE} is truncated; {AGAIN}.")
    if config.base:
        _check_named(config)
    elif (demo / "base").is_dir():
        _check_demo(demo)
    return [f"{name} is not a setting of this app; docs/deploy.md lists them." for name in unknown(os.environ)]


def check_address(config: Config) -> None:
    """Check that the address is free.

    Raises:
        ConfigError: if it cannot be used.
    """
    try:
        socket.create_server((config.host, config.port)).close()
    except OSError as error:
        cause = reason(error).split(" (")[0]
        raise ConfigError(
            f"The app cannot be served at {config.host}, port {config.port} ({cause}); choose others with SLIM_HOST "
            "and SLIM_PORT."
        ) from None
    except (TypeError, ValueError):  # characters that no host name can have
        raise ConfigError(f"{variable('host')} is {config.host!r}, which is not a host name.") from None


def web_asset(name: str, assets: Path = ASSETS) -> Path:
    """One of the page's scripts or styles, checked to be complete and of this version.

    Raises:
        ConfigError: if it is not.
    """
    path = assets / "webui" / name
    if _text(path, AGAIN).rstrip().rpartition("\n")[2] != END:
        raise ConfigError(f"{path} is truncated or belongs to another version of SLIM; {AGAIN}.")
    return path


def _check_named(config: Config) -> None:
    """Check folders named in the settings. Hub ids are checked when they are fetched."""
    folders = {name: _folder(variable(name), getattr(config, name)) for name in ("base", "lora", "slim")}
    base = folders.pop("base")
    if base is not None:
        _check_parts(base, ("config.json",), f"{variable('base')} must be a folder of a base model")
        if (base / INDEX).exists():
            _check_json(base / INDEX, "fetch it again")
            for shard in sorted(base.glob("*.safetensors")):
                _check_weights(shard, "fetch it again")
        else:
            _check_parts(base, ("model.safetensors",), f"{variable('base')} must be a folder of a base model")
    for name, folder in folders.items():
        if folder is not None:
            _check_parts(folder, ADAPTER, f"{variable(name)} must be a folder of an adapter")
            if (folder / STORED[0]).exists():
                _check_json(folder / STORED[0], "fix or remove it")


def _check_demo(demo: Path) -> None:
    remedy = f"{AGAIN}, or rebuild the demo: python -m slim_core demo build"
    for folder, names in (("base", BASE), ("lora", ADAPTER), ("slim", ADAPTER)):
        for name in names:
            _check_file(demo / folder / name, remedy)
    for folder in ("lora", "slim"):
        _check_kind(demo / folder / ADAPTER[0], remedy)
    version = json.loads((demo / "slim" / ADAPTER[0]).read_text("utf-8")).get("format_version", 1)
    if not isinstance(version, int) or version > FORMAT:
        raise ConfigError(
            f"{demo / 'slim' / ADAPTER[0]} has format {quoted(version)}, but this version of SLIM reads formats up to "
            f"{FORMAT}; {remedy}."
        )
    for name in STORED:
        if (demo / name).exists():
            _check_json(demo / name, remedy)


def _folder(setting: str, named: str) -> Path | None:
    """The folder that a setting names; None for an id of the Hub."""
    try:
        path = Path(named).expanduser()
        if named and path.is_dir():
            return path
        if named and path.exists():
            raise ConfigError(f"{setting} is {quoted(named, 200)}, which is a file; name the folder that holds it.")
    except (OSError, RuntimeError):  # too long for a file name, or in the home of an unknown user
        pass
    if named and FOLDER.match(named):
        raise ConfigError(
            f"{setting} is {quoted(named, 200)}, but there is no folder of that name; name a folder or a Hub id."
        )
    if named and not HUB_ID.fullmatch(named):
        page = named.removeprefix(HUB).strip("/")
        meant = page if named.startswith(HUB) and HUB_ID.fullmatch(page) else "Qwen/Qwen3-0.6B"
        raise ConfigError(
            f"{setting} is {quoted(named, 200)}, which is neither a folder nor a Hub id; a Hub id is like {meant}."
        )
    return None


def _check_parts(folder: Path, names: tuple[str, ...], must: str) -> None:
    for name in names:
        if not (folder / name).exists() and not (name.endswith(".safetensors") and any(folder.glob("*.bin"))):
            raise ConfigError(f"{folder} has no {name}; {must}.")
        if (folder / name).exists():
            _check_file(folder / name, "save or fetch it again")
            if name == ADAPTER[0]:
                _check_kind(folder / name, "save or fetch it again")


def _check_file(path: Path, remedy: str) -> None:
    if path.suffix == ".json":
        _check_json(path, remedy)
    elif path.suffix == ".safetensors":
        _check_weights(path, remedy)
    else:
        _text(path, remedy)


def _text(path: Path, remedy: str) -> str:
    return _bytes(path, MOST_JSON, remedy).decode("utf-8", "replace")


def _bytes(path: Path, most: int, remedy: str) -> bytes:
    """The beginning of a file, which must exist and not be empty."""
    try:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder and must be a file; {remedy}.")
        with path.open("rb") as file:
            beginning = file.read(most)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({reason(error)}); {remedy}.") from None
    if not beginning.strip():
        raise ConfigError(f"{path} is empty; {remedy}.")
    return beginning


def _check_json(path: Path, remedy: str) -> None:
    try:
        read_object(_bytes(path, MOST_JSON, remedy), str(path), DEPTH)
    except AdapterError as error:
        raise ConfigError(f"{str(error).rstrip('.')}; {remedy}.") from None


def _check_kind(path: Path, remedy: str) -> None:
    """Check that an adapter's config, which can be read, says which kind of adapter it is."""
    if not isinstance(json.loads(path.read_text("utf-8")).get("peft_type"), str):
        raise ConfigError(f"{path} has no `peft_type`, so it is not the config of an adapter of PEFT; {remedy}.")


def _check_weights(path: Path, remedy: str) -> None:
    """Check that a file's header is complete and the file has the length it says. No tensor is read."""
    start = _bytes(path, 8, remedy)
    size, length = path.stat().st_size, int.from_bytes(start, "little")
    if size < 8 or length > min(size - 8, MOST_HEADER):
        raise ConfigError(f"{path} is not a safetensors file or is truncated: it has {megabytes(size)}; {remedy}.")
    with path.open("rb") as file:
        file.seek(8)
        text = file.read(length)
    try:
        table = json.loads(text)
        end = max(entry["data_offsets"][1] for name, entry in table.items() if name != "__metadata__")
        expected = 8 + length + int(end)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise ConfigError(f"{path} is not a safetensors file: its header is invalid; {remedy}.") from None
    if expected != size:
        raise ConfigError(f"{path} has {size:,} bytes, but its header says {expected:,}; {remedy}.")
