# SPDX-License-Identifier: Apache-2.0
"""The checks of one adapter, in order; each is reported as soon as it is done."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..base.shapes import BaseShapes
from ..outside.errors import AdapterError, megabytes, quoted
from ..outside.files import CONFIG, WEIGHTS, Source
from ..outside.formats import check_contents
from ..outside.header import Header, TensorInfo, read_header
from ..outside.limits import DEFAULT, Limits
from ..outside.private import private_folder
from ..outside.record import RECORD, learned_ending
from ..outside.strict_json import read_object
from .adapter import Adapter
from .configs import ReadConfig, check_rank, read_config
from .expressions import without_expressions
from .fit import PREFIXES, check_fit, ignored_names
from .self_check import check_without_base
from .values import STATISTICS, changes, check_values


Name = Literal["readable", "format", "size", "fits this base", "weights finite", "changes something", "ready"]
LABEL_LENGTH = 60


@dataclass(frozen=True)
class Check:
    """One check and how it went.

    Attributes:
        name: which one.
        state: "warning" has passed, but its sentence should be read.
        sentence: what was found.
        adapter: with "ready" and no other.
    """

    name: Name
    state: Literal["passed", "warning", "failed"]
    sentence: str
    adapter: Adapter | None = None


def check(
    source: Source, base: BaseShapes | None, *, label: str | None = None, limits: Limits = DEFAULT
) -> Generator[Check, None, None]:
    """Copy an adapter into a private folder and check it there.

    The checks come one by one, so that they can be shown as they pass. The first that fails is the last, and then
    nothing is left behind; nor is there if the iterator is closed early. With "ready" the caller owns the adapter.

    Args:
        source: where it comes from.
        base: what it has to fit; None checks everything else.
        label: the visitor's name for it.
        limits: how large it may be.
    """
    try:
        folder = private_folder()
    except AdapterError as error:
        yield Check("readable", "failed", str(error))
        return
    handed_over = False
    running: Name = "readable"
    try:
        for result in _checks(source, base, clean_label(label or source.label), limits, folder):
            if isinstance(result, str):
                running = result
                continue
            handed_over = result.adapter is not None
            yield result
    except AdapterError as error:
        yield Check(error.check or running, "failed", str(error))
    finally:
        if not handed_over:
            shutil.rmtree(folder, ignore_errors=True)


def open_adapter(
    source: Source,
    base: BaseShapes | None,
    *,
    label: str | None = None,
    limits: Limits = DEFAULT,
    on_check: Callable[[Check], None] = lambda _: None,
) -> Adapter:
    """`check` in one call.

    Returns:
        The adapter; its `delete` removes the private copy.

    Raises:
        AdapterError: with the sentence of the check that failed.
    """
    for result in check(source, base, label=label, limits=limits):
        on_check(result)
        if result.state == "failed":
            raise AdapterError(result.sentence)
    assert result.adapter is not None  # the last check is "ready"
    return result.adapter


def check_form(config: bytes, shapes: Mapping[str, tuple[int, ...]], base: BaseShapes, limits: Limits) -> None:
    """Check an adapter that is yet to be trained: its config and the shapes of its tensors.

    Args:
        config: the content of its `adapter_config.json`.
        shapes: of its tensors, by the names that they will have in its file.
        base: what it has to fit.
        limits: how large it may be.

    Raises:
        AdapterError: if it would not pass the checks.
    """
    header = {name: TensorInfo("F32", shape) for name, shape in shapes.items()}
    raw = read_object(config, CONFIG, limits.json_depth)
    read = read_config(without_expressions(raw, header, limits), limits)
    check_rank(read.config, limits)
    # Masks and counts have other dtypes, but may be saved as float32.
    check_fit(read.config, header, base)


def clean_label(label: str) -> str:
    """A visitor's text as a short name of one line, without invisible characters. It must still be escaped when
    shown.
    """
    visible = "".join(c if c.isprintable() else " " for c in label[: 10 * LABEL_LENGTH])
    return " ".join(visible.split())[:LABEL_LENGTH] or "adapter"


def _checks(
    source: Source, base: BaseShapes | None, label: str, limits: Limits, folder: Path
) -> Iterator[Check | Name]:
    """Yields the name of each check before it runs, and its result afterwards."""
    yield "readable"
    source.copy_to(folder, limits)
    weights = folder / WEIGHTS
    size = weights.stat().st_size
    yield Check("readable", "passed", f"`{CONFIG}` and `{WEIGHTS}` are there.")

    yield "format"
    header = read_header(weights, limits)
    raw = read_object((folder / CONFIG).read_bytes(), CONFIG, limits.json_depth)
    check_contents(raw, header, PREFIXES)
    read = read_config(without_expressions(raw, header, limits), limits)
    if base is None:
        check_without_base(read.config, header)
    ends_with = learned_ending(folder, limits)
    (folder / RECORD).unlink(missing_ok=True)
    (folder / CONFIG).unlink()  # from here on only the rebuilt config is used
    kind = str(getattr(read.config.peft_type, "value", read.config.peft_type)).lower()
    method = "DoRA" if getattr(read.config, "use_dora", False) else getattr(read.config, "title", kind.upper())
    yield Check("format", "passed", f"A {method} adapter in safetensors.")

    yield "size"
    check_rank(read.config, limits)
    parameters = sum(math.prod(info.shape) for name, info in header.items() if not name.endswith(STATISTICS))
    yield Check("size", "passed", f"{megabytes(size)}, {parameters:,} parameters in {len(header):,} tensors.")

    yield "fits this base"
    targets, fits = _fit(read, header, base)
    yield fits

    yield "weights finite"
    check_values(weights, limits)
    yield Check("weights finite", "passed", "All numbers are finite and of a plausible size.")

    yield "changes something"
    moves = Check("changes something", "passed", "Its update is not zero.")
    if not changes(weights, read.config, header):
        moves = Check(
            "changes something",
            "warning",
            "It changes nothing: the update of every Linear is zero, as before training, so its answers are the "
            "base's.",
        )
    yield moves

    yield "ready"
    ignored = ignored_names(read.config, base) if base else ()
    warnings = [
        *read.warnings,
        *ignored,
        *(result.sentence for result in (fits, moves) if result.state == "warning" and base),
    ]
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    adapter = Adapter(
        kind,
        label,
        read.config,
        folder,
        header,
        targets,
        parameters,
        size,
        digest,
        read.trained_on,
        tuple(warnings),
        ends_with,
    )
    yield Check("ready", "passed", f"{adapter.detail}.", adapter)


def _fit(read: ReadConfig, header: Header, base: BaseShapes | None) -> tuple[tuple[str, ...], Check]:
    if base is None:
        return (), Check("fits this base", "warning", "Not checked: no base model was given.")
    targets = check_fit(read.config, header, base)
    if read.trained_on and _model_name(read.trained_on) not in (_model_name(base.name), _model_name(base.source)):
        return targets, Check(
            "fits this base",
            "warning",
            f"Trained on another base: its config names {quoted(read.trained_on, 120)}, this is "
            f"{quoted(base.name, 120)}. All shapes fit, but the answers may be poor.",
        )
    return targets, Check("fits this base", "passed", f"All {len(targets)} Linears have the right sizes.")


def _model_name(name: str) -> str:
    """The last part of a folder or Hub id, since the same model may be in either."""
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()
