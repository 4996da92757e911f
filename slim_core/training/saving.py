# SPDX-License-Identifier: Apache-2.0
"""Writing what was trained: completely or not at all, and to another folder if the first cannot be written.

Files are written aside, and moved to their place when all of them are there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..base.errors import is_out_of_memory
from ..outside.errors import reason
from .card import write_model_card
from .checkpoints import PREFIX
from .errors import TrainingError
from .names import named
from .report import RECORD, TrainingRecord
from .settings import is_main_process
from .trainer import SlimTrainer
from .whole_files import write_sums


ASIDE, CHECKPOINT_ASIDE = ".adapter.new", ".checkpoint.new"


class SaveError(Exception):
    """A file or folder cannot be written.

    Attributes:
        what: it is, and where it was to be.
        why: in a few words.
    """

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} cannot be written: {why}")
        self.what, self.why = what, why


class SavingTrainer(SlimTrainer):
    """Writes each checkpoint under a temporary name and renames it when it is complete.

    If one cannot be written, it raises `SaveError`, and nothing incomplete stays behind.
    """

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(super()._get_output_dir(trial)) / CHECKPOINT_ASIDE)

    model: PeftModel

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        assert self.args.output_dir is not None  # the run names one
        folder = Path(self.args.output_dir)
        path = folder / f"{PREFIX}{self.state.global_step}"
        aside = folder / CHECKPOINT_ASIDE
        with writing(f"The checkpoint {named(path)}"):
            try:
                if is_main_process():
                    # A process that was killed may have left half of one.
                    shutil.rmtree(aside, ignore_errors=True)
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)
                # Every process writes a part of it.
                self.accelerator.wait_for_everyone()
                if is_main_process():
                    write_sums(aside / path.name)
                    (aside / path.name).rename(path)
            finally:
                if is_main_process():
                    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Within a `with` block, errors of writing become `SaveError`.

    Raises:
        SaveError: for any error except running out of memory.
    """
    try:
        yield
    except (TrainingError, SaveError):
        raise
    except Exception as error:  # torch, safetensors and tokenizers each have their own
        if is_out_of_memory(error):
            raise
        raise SaveError(what, reason(error)) from error


def save_adapter(
    trainer: SlimTrainer, tokenizer: PreTrainedTokenizerBase, record: TrainingRecord, folder: Path
) -> None:
    """Write the adapter, its tokenizer, card and record, replacing existing ones.

    Every process takes part, since a sharded model is gathered first.

    Raises:
        SaveError: if it cannot be written. The folder is then as before.
    """
    aside = folder / ASIDE
    with writing(f"The {record.method} adapter in {named(folder)}"):
        try:
            if is_main_process():
                aside.mkdir(parents=True, exist_ok=True)
            trainer.save_model(str(aside))
            if is_main_process():
                tokenizer.save_pretrained(aside)
                write_model_card(aside, record)
                record.save(aside)
                _move(aside, folder)
        finally:
            if is_main_process():
                shutil.rmtree(aside, ignore_errors=True)


def _move(aside: Path, folder: Path) -> None:
    # The record is written last: it marks the others as complete.
    paths = sorted(aside.iterdir(), key=lambda path: path.name == RECORD)
    for path in paths:
        if (folder / path.name).is_dir():
            raise IsADirectoryError(0, f"{path.name} is a folder there")
    for path in paths:
        os.replace(path, folder / path.name)


def keep_elsewhere(
    trainer: SlimTrainer, tokenizer: PreTrainedTokenizerBase, record: TrainingRecord, folders: list[Path]
) -> Path | None:
    """Write the adapter to the first folder that can be written.

    Args:
        trainer: of the adapter.
        tokenizer: of the base.
        record: of the run.
        folders: to try before the system's folder for temporary files.

    Returns:
        Where it is; None if nowhere.
    """
    # A sharded model is gathered by all processes together, and the others wait elsewhere.
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return None
    for folder in folders:
        try:
            save_adapter(trainer, tokenizer, record, folder)
            return folder
        except SaveError:
            continue
    temporary: Path | None = None
    try:
        # Not in this process's private folder (`outside/private.py`), which is deleted when the process ends: this
        # adapter is for the user to keep.
        temporary = Path(tempfile.mkdtemp(prefix=f"slim-{record.method}-"))
        save_adapter(trainer, tokenizer, record, temporary)
        return temporary
    except (OSError, SaveError):
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        return None
