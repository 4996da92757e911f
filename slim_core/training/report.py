# SPDX-License-Identifier: Apache-2.0
"""The reports of a run: the data before training, training.json after it, the comparison."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ..outside.errors import visible
from ..outside.record import RECORD
from .encoding import IGNORED, EncodedExample, ExampleEncoder
from .examples import Examples, Lengths
from .names import named
from .settings import TrainSettings


PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "slim-core")


@dataclass
class TrainingRecord:
    """The content of training.json.

    Attributes:
        status: "running", "finished" or "interrupted".
        method: what was trained.
        arguments: the settings of the run.
        data: sources with counts and fingerprints, examples and tokens.
        versions: of the libraries.
        device: what it ran on.
        steps: optimiser steps done; `total_steps` of how many.
        trainable_parameters: how many.
        validation_loss_before, validation_loss_after: nats per answer token; None without validation data.
        seconds: training time, those before a resume included.
        peak_memory: most bytes while it trained, since a resume: allocated on CUDA, resident of the process on a CPU.
            None where the system does not tell.
        curves: the Trainer's log.
        answers_end_with: the mark at which answers are to be stopped, where the base's token for it cannot be learned.
    """

    method: str
    arguments: dict[str, Any]
    data: dict[str, Any]
    status: str = "running"
    versions: dict[str, str | None] = field(default_factory=lambda: versions())
    device: str = ""
    steps: int = 0
    total_steps: int = 0
    trainable_parameters: int = 0
    validation_loss_before: float | None = None
    validation_loss_after: float | None = None
    seconds: float = 0.0
    peak_memory: int | None = None
    curves: list[dict[str, float]] = field(default_factory=list)
    answers_end_with: str | None = None

    @property
    def interrupted(self) -> bool:
        return self.status == "interrupted"

    def save(self, folder: Path) -> None:
        """Write the record completely or not at all."""
        content = asdict(self) | {"interrupted": self.interrupted}
        temporary = folder / (RECORD + ".new")
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, folder / RECORD)

    @classmethod
    def load(cls, folder: Path) -> TrainingRecord | None:
        """The record in a folder; None if there is no readable one."""
        try:
            content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            content.pop("interrupted", None)
            return cls(**content)
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def last(self, name: str) -> float | None:
        """The last logged value of a curve."""
        return next((entry[name] for entry in reversed(self.curves) if name in entry), None)


def versions() -> dict[str, str | None]:
    """Versions of Python and the libraries; None for what is not installed as a package."""
    by_name: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            by_name[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            by_name[name] = None
    return by_name


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def describe_arguments(settings: TrainSettings) -> dict[str, Any]:
    """The settings as JSON."""
    return asdict(settings) | {"output": str(settings.output)}


def describe_data(examples: Examples, encoder: ExampleEncoder) -> dict[str, Any]:
    """Counts, lengths and fingerprints as JSON."""
    parts = {"train": examples.train, "validation": examples.validation}
    return {
        "sources": examples.sources,
        "left_out_too_long": examples.too_long,
        "max_length": examples.max_length,
        "duplicates_in_training": examples.duplicates,
        "in_training_and_validation": examples.in_both,
        "template": _template(encoder),
        **{name: asdict(Lengths.of(split)) if split else None for name, split in parts.items()},
    }


def _template(encoder: ExampleEncoder) -> str:
    if not encoder.wrote:
        return "none"
    return "fallback" if encoder.uses_fallback else "tokenizer"


# -- before training ---------------------------------------------------------------------------------------------


def print_data(console: Console, examples: Examples, encoder: ExampleEncoder) -> None:
    """Print sources, counts, unused columns, lengths, and the first training example as the model sees it."""
    for source in examples.sources:
        # A Text, since `markup=False` would still turn names such as :smile: into emojis.
        console.print(Text(_source_line(source, examples.max_length)))
    if examples.in_both:
        console.print(
            f"{examples.in_both} of {len(examples.validation)} validation examples are also in the training data, so "
            "their loss says little about new texts."
        )
    console.print(_length_table(examples))
    if encoder.wrote and encoder.uses_fallback:
        console.print("The tokenizer has no chat template: a plain one (### Instruction / ### Response) is used.")
    if encoder.wrote and not encoder.closes_answers():
        console.print("The chat template does not close answers with a token, so the model will not learn to stop.")
    print_preview(console, examples.first, encoder.tokenizer)


def _source_line(source: dict[str, Any], limit: int) -> str:
    counts = [
        (source["too_long"], f"left out because longer than {limit} tokens"),
        (source["blank_lines"], "empty lines"),
        (source["duplicates"], "the same as an earlier one"),
    ]
    parts = [
        f"{source['records']} records for {source['use']}",
        *(f"{n} {description}" for n, description in counts if n),
    ]
    unused = source["unused_columns"]
    return f"{source['name']}: {', '.join(parts)}" + (f"; not used: {', '.join(map(named, unused))}" if unused else "")


def _length_table(examples: Examples) -> Table:
    table = Table(title=f"Tokens per example (limit {examples.max_length})")
    for column in ("", "examples", "median", "longest", "all tokens", "answer tokens"):
        table.add_column(column, justify="right" if column else "left")
    for name, split in (("train", examples.train), ("validation", examples.validation)):
        if split:
            lengths = Lengths.of(split)
            numbers = (lengths.examples, lengths.median, lengths.most, lengths.tokens, lengths.answer_tokens)
            table.add_row(name, *(f"{n:,}" for n in numbers))
        else:
            table.add_row(name, "0", "", "", "", "")
    return table


def print_preview(console: Console, example: EncodedExample, tokenizer: PreTrainedTokenizerBase) -> None:
    """Print the text of an example with special tokens, and the parts that the loss is computed on."""
    preview = Text()
    answers = answer_texts(example, tokenizer)
    for learned, tokens in _runs(example):
        preview.append(visible(_text(tokens, tokenizer)), style="bold green" if learned else "")
    console.print(Panel(preview, title=Text(f"First example ({example.place}), as the model sees it")))
    console.print(Panel(Text(visible("\n⋯\n".join(answers)), style="bold green"), title="What it learns to write"))


def answer_texts(example: EncodedExample, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each run of tokens that the loss is computed on."""
    return [_text(tokens, tokenizer) for learned, tokens in _runs(example) if learned]


def _text(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return cast("str", tokenizer.decode(tokens))  # one text of one list


def _runs(example: EncodedExample) -> Iterable[tuple[bool, list[int]]]:
    pairs = zip(example.input_ids, example.labels, strict=True)
    for learned, run in groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        yield learned, [token for token, _ in run]


# -- after training ----------------------------------------------------------------------------------------------


TITLE = "Same data, same order, same budget"
CAPTION = "Before and after: validation loss in nats per answer token. Identity and distance at the last step."
COLUMNS = (
    "method",
    "weights",
    "steps",
    "before",
    "after",
    "identity",
    "distance",
    "seconds",
)


def _cells(record: TrainingRecord) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    return [
        record.method,
        f"{record.trainable_parameters:,}",
        f"{record.steps}/{record.total_steps}",
        number(record.validation_loss_before, ".4f"),
        number(record.validation_loss_after, ".4f"),
        number(record.last("identity_share"), ".1%"),
        number(record.last("distance"), ".2f"),
        f"{record.seconds:.0f}",
    ]


def print_comparison(console: Console, records: Sequence[TrainingRecord]) -> None:
    """One row for each method."""
    table = Table(title=TITLE, caption=CAPTION)
    for column in COLUMNS:
        # A name that is cut short could be that of another method.
        is_name = column == "method"
        table.add_column(column, justify="left" if is_name else "right", no_wrap=is_name)
    for record in records:
        table.add_row(*_cells(record))
    console.print(table)


def write_comparison(folder: Path, records: Sequence[TrainingRecord]) -> None:
    """Write the comparison as a Markdown file."""
    (folder / "comparison.md").write_text(f"# {TITLE}\n\n{markdown_table(records)}\n\n{CAPTION}\n", encoding="utf-8")


def markdown_table(records: Sequence[TrainingRecord]) -> str:
    """One row for each method, as Markdown."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(_cells, records)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
