# SPDX-License-Identifier: Apache-2.0
"""Training and measuring the cells of a table."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from ..baselines import METHODS
from ..evaluation.errors import EvaluationError
from ..evaluation.journal import Journal
from ..evaluation.participants import attach_adapter
from ..evaluation.results import Participant
from ..evaluation.run import fingerprint_of, run_tasks, unsolved
from ..evaluation.summary import BASE
from ..inference import EngineError, GateSetting, load_engine
from ..many import Respondent
from ..training import TrainingError, train
from ..training.base import load_base
from ..training.resume import anew_if_moved
from .runs import Cell, PaperError
from .work import CellFiles, WorkFolder, write_json


ROW = "row"
SIZE = 50  # items that are solved together
LEFT_OUT = "This task is left out."
WAIT = 2.0  # seconds between checks whether another process has finished
Say = Callable[[str], None]


def run_cells(work: WorkFolder, cells: Sequence[Cell], say: Say) -> list[str]:
    """Train and measure what is not there yet. Several processes may do this in one folder.

    Args:
        work: the folder.
        cells: what is wanted, in order.
        say: gets a sentence about each part that begins or is done.

    Returns:
        A sentence for each cell that a method or the base does not allow; the others are done nevertheless.

    Raises:
        KeyboardInterrupt: if a person ended a training; the next call continues it.
        PaperError, EvaluationError: if nothing can be done, for example because data are missing.
    """
    remaining = [(cell, work.files_of(cell)) for cell in cells]
    failed: dict[str, str] = {}
    while remaining := [(c, p) for c, p in remaining if not p.measured.is_file() and c.words not in failed]:
        done = []
        for cell, files in remaining:
            try:
                done.append(_done_alone(work, cell, files, say))
            except (PaperError, EvaluationError):
                raise
            except (EngineError, TrainingError) as error:
                failed[cell.words] = f"{cell.words} failed: {error}"
                say(failed[cell.words])
        # For a cell that another process is working on, only wait for the result.
        if not any(done) and len(done) == len(remaining):
            time.sleep(WAIT)
    return list(failed.values())


def _done_alone(work: WorkFolder, cell: Cell, files: CellFiles, say: Say) -> bool:
    """Do everything for a cell; False if another process is doing part of it."""
    if files.measured.is_file():
        return True
    if not _made(work, cell, files, say):
        return False
    with work.locked(files.measured) as locked:
        if locked and not files.measured.is_file():
            say(f"{cell.words}: answering")
            _measure(work, cell, files, say)
            say(f"{cell.words}: measured")
        return locked


def _made(work: WorkFolder, cell: Cell, files: CellFiles, say: Say) -> bool:
    """Make the adapter of a cell, and the one that it goes on from; False if somebody else is making one of them."""
    if files.is_ready:
        return True
    if cell.earlier is not None and not _made(work, cell.earlier, work.files_of(cell.earlier), say):
        return False
    with work.locked(files.origin) as locked:
        if locked and files.record is None:
            _train(work, cell, files, say)
        if locked and not files.is_ready:
            _finish(work, cell, files)
        return locked


def _train(work: WorkFolder, cell: Cell, files: CellFiles, say: Say) -> None:
    with work.locked(files.data) as locked:
        # A process that writes the same examples at this moment replaces the file with an equal one.
        if locked and not files.data.is_file():
            new = files.data.with_name(f"{files.data.name}.new")
            work.scale.write_set(cell.contender.data, new)
            new.replace(files.data)
    while not files.data.is_file():
        time.sleep(WAIT)
    say(f"{cell.words}: training")
    begin = time.monotonic()
    if train(anew_if_moved(work.scale.settings(cell, files.data, files.origin, files.before))).asked_to_end:
        raise KeyboardInterrupt
    say(f"{cell.words}: trained in {(time.monotonic() - begin) / 60:.1f} minutes")


def _finish(work: WorkFolder, cell: Cell, files: CellFiles) -> None:
    """Make another adapter from the trained one."""
    finish = cell.contender.finish
    if finish is None or METHODS[finish.method].finish is None:
        raise PaperError(f"{files.folder} has no adapter any more; delete the folder to train it again.")
    settings = work.scale.settings(cell, files.data, files.origin)
    model = PeftModel.from_pretrained(load_base(settings), str(files.origin))
    make = METHODS[finish.method].finish
    assert make is not None  # as checked above
    make(model, finish.options)
    new = files.folder.with_name(f"{files.folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    model.save_pretrained(str(new))
    new.rename(files.folder)


def _measure(work: WorkFolder, cell: Cell, files: CellFiles, say: Say) -> None:
    """Let the base and the adapter answer. Always these two, so that the base's answers are always the same."""
    tasks = work.scale.tasks(cell.contender.part)
    engine = load_engine(work.scale.base, revision=work.scale.revision)
    row = _with_strength(attach_adapter(engine, ROW, str(files.folder)), cell.contender.strength)
    base = Participant(Respondent(BASE, engine.variants[0]), work.scale.base)
    respondents = [base.respondent, row.respondent]
    mark = fingerprint_of(engine, respondents, {ROW: row.sha256}, tasks, SIZE)
    files.measured.parent.mkdir(parents=True, exist_ok=True)
    journal = _journal(files.measured.with_name(f"{files.measured.name}.partial"), mark)
    try:
        samples = run_tasks(engine, respondents, tasks, journal, SIZE)
    finally:
        journal.close()
    gone = unsolved(samples)
    if len(gone) == len(tasks):
        raise EvaluationError(" ".join(gone.values()))
    for sentence in gone.values():
        say(f"{cell.words}: {sentence} {LEFT_OUT}")
    content = {
        "base": asdict(engine.info) | {"name": Path(work.scale.base).name},
        "base_variant": asdict(base.respondent.variant),
        "variant": asdict(row.respondent.variant),
        "strength": row.respondent.gate.strength,
        "adapter": files.folder.name,
        "sha256": row.sha256,
        "training": _facts(files),
        "tasks": {task.name: task.fingerprint for task in tasks},
        "samples": samples,
    }
    write_json(files.measured, content)
    journal.delete()
    del engine
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _facts(files: CellFiles) -> dict[str, Any]:
    """What the tables say about a training."""
    record = files.record
    assert record is not None  # the adapter was trained before it answered
    return {
        "steps": record.steps,
        "parameters": record.trainable_parameters,
        "validation_loss": record.validation_loss_after,
        "seconds": record.seconds,
        "peak_memory": record.peak_memory,
    }


def _with_strength(participant: Participant, strength: float | None) -> Participant:
    if strength is None:
        return participant
    if participant.respondent.variant.strength is None:
        raise EvaluationError("An adapter without a gate cannot answer at another strength.")
    return replace(participant, respondent=replace(participant.respondent, gate=GateSetting(strength)))


def _journal(path: Path, fingerprint: str) -> Journal:
    """The finished part of a measurement; empty if the adapter has changed since."""
    try:
        return Journal(path, fingerprint, resume=True)
    except EvaluationError:
        path.unlink(missing_ok=True)
        return Journal(path, fingerprint, resume=False)
