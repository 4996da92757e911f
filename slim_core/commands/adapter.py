# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core adapter …`: check, describe and export adapters."""

from __future__ import annotations

import errno
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..outside.errors import printable, quoted, reason
from .console import refuse, screen


if TYPE_CHECKING:
    from ..adapters import Adapter, Check
    from ..peft_tools import LoraExport


app = typer.Typer(no_args_is_help=True, help="Check, describe and export adapters.")

SOURCE = typer.Argument(metavar="DIR|ID", help="Folder, or Hub id.")
STYLES = {"passed": "green", "warning": "yellow", "failed": "red"}
BATCH, LENGTH = 8, 128
# The exported file for llama.cpp.
GGUF = "adapter.gguf"
# Everyday English of several kinds, for users who have no text of the adapter's domain.
SENTENCES = (
    "The train leaves at half past seven, so we should be at the station a little earlier.",
    "Question: What is the capital of France? Answer: The capital of France is Paris.",
    "Once upon a time there was a girl who lived at the edge of a large forest with her brother.",
    "To make bread you need flour, water, salt and yeast; knead the dough and let it rest for an hour.",
    "If a box holds twelve eggs and five are broken, then seven eggs are left.",
    "The committee will meet again on Monday to decide about the budget for the coming year.",
    "def add(a, b):\n    return a + b",
    "Water boils at a lower temperature on a mountain because the air presses on it less.",
)


@app.command("check")
def check_command(
    source: Annotated[str, SOURCE],
    base: Annotated[str | None, typer.Option(help="Base model to check it against: folder or Hub id.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of an adapter on the Hub.")] = None,
    base_revision: Annotated[str | None, typer.Option(help="Revision of the base.")] = None,
) -> None:
    """Check an adapter as the app does before using it. Of the base, only the config is read."""
    from ..adapters import OPERATOR, base_from_config, check, named_source

    console = screen(soft_wrap=True)
    with _exit_on_refusal():
        shapes = None
        if base is not None:
            _check_named(base)
            shapes = base_from_config(base, base_revision)
        last: Check | None = None
        for last in check(named_source(source, revision), shapes, limits=OPERATOR):
            console.print(f"{last.state:8}", style=STYLES[last.state], end="")
            console.print(f"{last.name}: {printable(last.sentence)}", highlight=False)
    assert last is not None  # there is at least one check
    if last.adapter:
        last.adapter.delete()
    if last.state == "failed":
        raise typer.Exit(1)


@app.command()
def info(
    source: Annotated[str, SOURCE],
    revision: Annotated[str | None, typer.Option(help="Revision of an adapter on the Hub.")] = None,
) -> None:
    """Describe an adapter."""
    with _exit_on_refusal(), _opened(source, revision) as adapter:
        console = screen(soft_wrap=True, highlight=False)
        for name, value in _facts(adapter):
            console.print(f"{name:12} {printable(str(value))}")


@app.command()
def export(
    source: Annotated[str, SOURCE],
    output: Annotated[Path, typer.Argument(help="New folder for the LoRA.")],
    base: Annotated[str, typer.Option(help="Base model: folder or Hub id.")],
    text: Annotated[
        Path | None, typer.Option(help="Calibration text, one passage per line. (default: eight sentences)")
    ] = None,
    form: Annotated[
        Literal["peft", "gguf"],
        typer.Option("--format", help="peft, or gguf for llama.cpp and Ollama, which takes a LoRA as well."),
    ] = "peft",
    revision: Annotated[str | None, typer.Option(help="Revision of an adapter on the Hub.")] = None,
    base_revision: Annotated[str | None, typer.Option(help="Revision of the base.")] = None,
) -> None:
    """Write a SLIM adapter as a plain LoRA with its mean routing over a text, and report how much they differ.

    Use text like what the LoRA will read: the routing is frozen at its mean over that text.
    """
    from ..adapters import OPERATOR, AdapterError, describe_base, load_whole, named_source, open_adapter, try_out
    from ..extras import lacking
    from ..method import SlimConfig

    console = screen(soft_wrap=True, highlight=False)
    with _exit_on_refusal(), _new_folder(output):
        _check_named(base)
        if form == "gguf" and (missing := lacking("gguf", "The GGUF format")) is not None:
            raise AdapterError(missing)
        passages = _passages(text)
        model, tokenizer = _load(base, base_revision)
        adapter = open_adapter(named_source(source, revision), describe_base(model, base), limits=OPERATOR)
        try:
            config = adapter.config
            if not isinstance(config, SlimConfig):
                _check_converted(adapter, form)
                _write_gguf(config, adapter.tensors(), model.config, output)
                console.print(f"The LoRA is in {printable(str(output / GGUF))}.")
                return
            model = load_whole(model, adapter, "exported")
            try_out(model, "exported")
        finally:
            adapter.delete()
        model.peft_config["exported"].base_model_name_or_path = base
        report = _write_frozen(model, _batches(tokenizer, passages), output, form)
    target = output / GGUF if form == "gguf" else output
    console.print(f"A plain LoRA of rank {config.num_experts * config.r} is in {printable(str(target))}.")
    console.print(
        f"Its next-token distribution differs from the routed adapter's by {report.mean_kl:.4f} nats on average and "
        f"{report.max_kl:.4f} at most, over {report.tokens} tokens; {report.same_top1:.1%} have the same most likely "
        "next token."
    )


def _check_converted(adapter: Adapter, form: str) -> None:
    """Refuse an adapter that has no routing to freeze, except a LoRA that is to be converted."""
    from ..adapters import AdapterError

    method = "plain LoRA" if adapter.title == "LoRA" else adapter.title
    if adapter.kind != "lora":
        raise AdapterError(f"This is a {method} adapter; only SLIM's can be exported.")
    if form == "peft":
        raise AdapterError(f"This is a {method} already, which PEFT can load directly; there is no routing to freeze.")


def _write_frozen(model: Any, batches: Iterator[dict[str, Any]], output: Path, form: str) -> LoraExport:
    """Export the adapter named `exported`; the GGUF file is made from what PEFT would load."""
    from peft import LoraConfig
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from ..adapters import AdapterError
    from ..outside.files import WEIGHTS
    from ..peft_tools import export_lora

    try:
        if form == "peft":
            return export_lora(model, "exported", batches, output)
        with TemporaryDirectory() as folder:
            report = export_lora(model, "exported", batches, folder)
            _write_gguf(LoraConfig.from_pretrained(folder), load_file(Path(folder, WEIGHTS)), model.config, output)
            return report
    except ValueError as error:
        raise AdapterError(str(error)) from None
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"The LoRA cannot be written to {output}: {reason(error)}.") from None


def _write_gguf(config: Any, tensors: dict[str, Any], base: Any, output: Path) -> None:
    from ..adapters import AdapterError
    from ..peft_tools import lora_to_gguf

    try:
        lora_to_gguf(config, tensors, base, output / GGUF)
    except ValueError as error:
        raise AdapterError(str(error)) from None
    except OSError as error:
        raise AdapterError(f"The LoRA cannot be written to {output}: {reason(error)}.") from None


@contextmanager
def _exit_on_refusal() -> Iterator[None]:
    """Turn an error into one sentence and exit code 1."""
    from ..adapters import AdapterError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the checks report anything odd themselves
            yield
    except AdapterError as error:
        refuse(error)


@contextmanager
def _opened(source: str, revision: str | None) -> Iterator[Adapter]:
    from ..adapters import OPERATOR, named_source, open_adapter

    adapter = open_adapter(named_source(source, revision), None, limits=OPERATOR)
    try:
        yield adapter
    finally:
        adapter.delete()


def _check_named(base: str) -> None:
    from ..adapters import AdapterError

    if not base.strip():
        raise AdapterError("--base is empty; name a folder or a Hub id such as Qwen/Qwen3-0.6B.")


@contextmanager
def _new_folder(path: Path) -> Iterator[None]:
    """Create a folder before the work that fills it; remove what was created if that work fails."""
    from ..adapters import AdapterError
    from ..outside.files import CONFIG, WEIGHTS

    created: list[Path] = []
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise AdapterError(f"{path} exists and is not empty; name a new folder.")
        created = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        _remove_empty(created)
        raise AdapterError(
            f"The LoRA cannot be written to {quoted(str(path), 120)}: {reason(error)}; name another folder."
        ) from None
    try:
        yield
    except BaseException:
        for name in (CONFIG, WEIGHTS, GGUF):  # half an adapter is useless
            with suppress(OSError):
                (path / name).unlink()
        _remove_empty(created)
        raise


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # somebody may have put something there meanwhile
            folder.rmdir()


def _facts(adapter: Adapter) -> Iterator[tuple[str, Any]]:
    config = adapter.config
    targets = config.target_modules or "PEFT's default"
    if not isinstance(targets, str):  # the same Linear of every block is listed once
        targets = ", ".join(sorted({re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in targets}))
    yield "kind", adapter.title
    yield from _sizes(adapter)
    yield "targets", targets
    if config.modules_to_save:
        yield "own modules", ", ".join(sorted(config.modules_to_save))
    if tokens := getattr(config, "trainable_token_indices", None):
        yield "own tokens", tokens
    yield "parameters", f"{adapter.parameters:,}"
    yield "bytes", f"{adapter.bytes:,}"
    yield "base", adapter.trained_on or "not named"
    for name, shapes in (getattr(config, "base_fingerprint", None) or {}).items():
        yield "fingerprint", f"{name}: {shapes}"
    yield "sha256", adapter.sha256
    for warning in adapter.warnings:
        yield "warning", warning


def _sizes(adapter: Adapter) -> Iterator[tuple[str, Any]]:
    from peft import LoraConfig

    from ..method import SlimConfig

    config = adapter.config
    if not isinstance(config, (LoraConfig, SlimConfig)):
        yield "size", adapter.detail
        return
    yield "rank", config.r
    if config.rank_pattern:
        yield "other ranks", ", ".join(f"{name} {rank}" for name, rank in config.rank_pattern.items())
    if isinstance(config, SlimConfig):
        yield "experts", f"{config.num_experts} LoRA + {config.num_identity} identity, top-{config.top_k}"
    yield "alpha", config.alpha if isinstance(config, SlimConfig) else config.lora_alpha
    yield "rsLoRA", "yes" if config.use_rslora else "no"


def _passages(path: Path | None) -> list[str]:
    from ..adapters import AdapterError

    if path is None:
        return list(SENTENCES)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        cause = reason(error) if isinstance(error, OSError) else "it is not UTF-8"
        raise AdapterError(f"The text {path} cannot be read: {cause}.") from None
    passages = [line for line in lines if line]
    if not passages:
        raise AdapterError(f"The text {path} is empty; write one passage per line.")
    return passages


def _load(base: str, revision: str | None) -> tuple[Any, Any]:
    """The base and its tokenizer, checked as in the app: transformers would fill in missing weights at random."""
    from threading import Event

    from ..adapters import AdapterError
    from ..base.files import base_files
    from ..base.loading import plan, read_prompts, read_weights
    from ..inference import BaseChoice, EngineError

    choice = BaseChoice(base, revision)
    try:
        with base_files(choice) as files:
            loading_plan = plan(choice, files.config(), "cpu")
            folder = files.fetch(lambda done, total: None, Event())
            return read_weights(choice, folder, loading_plan), read_prompts(choice, folder).tokenizer
    except EngineError as error:
        raise AdapterError(str(error)) from None


def _batches(tokenizer: Any, passages: list[str]) -> Iterator[dict[str, Any]]:
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    for start in range(0, len(passages), BATCH):
        texts = passages[start : start + BATCH]
        encoded = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=LENGTH)
        yield {name: encoded[name] for name in ("input_ids", "attention_mask")}
