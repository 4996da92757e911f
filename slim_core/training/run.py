# SPDX-License-Identifier: Apache-2.0
"""A whole training run: data, base model, one adapter for each method, files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from ..base.errors import is_out_of_memory
from ..baselines import METHODS
from ..method import turn_opening
from ..outside.errors import first_line, reason
from .arguments import training_arguments
from .base import add_adapter, load_base, load_tokenizer
from .checkpoints import CHECKPOINTS, Checkpoints, KeepNewest, read_checkpoints, set_aside
from .closing import confused_with, learned_mark, unlearnable_sentence
from .collator import Collator
from .early_stopping import KeepBest
from .encoding import ExampleEncoder
from .errors import TrainingError
from .examples import Examples, load_examples
from .memory import PeakMemory
from .names import named
from .output import check_output, check_space, empty_folders_undone, try_output
from .progress import LiveProgress, LossGuard, StopOnInterrupt
from .report import (
    RECORD,
    TrainingRecord,
    describe_arguments,
    describe_data,
    device_name,
    print_comparison,
    print_data,
    write_comparison,
)
from .reporters import cannot_report, check_report_to
from .resume import PreviousRun, check_same_data, fitting, going_on, nothing_whole
from .saving import SaveError, SavingTrainer, keep_elsewhere, save_adapter, writing
from .settings import TrainSettings, is_main_process
from .usable import check_usable


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        records: one for each method that was trained, in order.
        interrupted: whether the user ended it early. What was trained by then is saved.
        asked_to_end: whether the user wanted it to end, also where everything was trained by then.
        resumable: whether there is a checkpoint to resume from, or nothing left to do. A second Ctrl-C writes none.
    """

    records: list[TrainingRecord]
    interrupted: bool
    resumable: bool = True
    asked_to_end: bool = False


@dataclass
class _RunSetup:
    """What all methods of a run share."""

    settings: TrainSettings
    tokenizer: PreTrainedTokenizerBase
    examples: Examples
    data: dict
    earlier: Mapping[str, PreviousRun]
    console: Console
    callbacks: Sequence[TrainerCallback]
    closing: int | None  # the token that closes answers
    asked_to_end: bool = False  # by the user, in any of the processes

    def say(self, sentence: str) -> None:
        # Names are plain text: `[bold]` and `:train:` in them have no special meaning.
        self.console.print(sentence, markup=False, emoji=False, highlight=False, soft_wrap=True)


def train(
    settings: TrainSettings, console: Console | None = None, callbacks: Sequence[TrainerCallback] = ()
) -> Outcome:
    """Train the methods of `settings` one after the other, on the same examples in the same order.

    Args:
        settings: the run.
        console: where progress goes; None for nowhere.
        callbacks: further callbacks of transformers' Trainer.

    Raises:
        TrainingError: if the settings, the data, the base model or the output folder prevent it.
    """
    console = console if console is not None and is_main_process() else Console(quiet=True)
    check_report_to(settings.report_to)
    # In a new run only the first process checks, since the test files of several would collide.
    earlier = check_output(settings) if is_main_process() or settings.resume else {}
    if is_main_process():
        try_output(settings)
    tokenizer, config = load_tokenizer(settings)
    encoder = ExampleEncoder(tokenizer)
    if is_main_process():
        remaining = [method for method in settings.methods if not earlier.get(method, PreviousRun()).is_finished]
        check_space(settings, check_usable(settings, remaining, config, encoder.closing_token))
    examples = load_examples(settings, encoder, config)
    print_data(console, examples, encoder)
    data = describe_data(examples, encoder)
    closing = encoder.closing_token if encoder.wrote else None
    prepared = _RunSetup(settings, tokenizer, examples, data, earlier, console, callbacks, closing)
    records: list[TrainingRecord] = []
    for method in settings.methods:
        records.append(_train_or_keep(method, prepared))
        if prepared.asked_to_end or records[-1].interrupted:
            break
    if len(settings.methods) > 1:
        print_comparison(console, records)
        if is_main_process():
            _write_comparison(settings, records)
    interrupted, last = records[-1].interrupted, settings.folder(records[-1].method)
    resumable = not interrupted or bool(read_checkpoints(last).intact)
    asked = interrupted or prepared.asked_to_end
    return Outcome(records, interrupted or len(records) < len(settings.methods), resumable, asked)


def _write_comparison(settings: TrainSettings, records: Sequence[TrainingRecord]) -> None:
    try:
        with writing(f"The comparison in {named(settings.output)}"):
            write_comparison(settings.output, records)
    except SaveError as error:
        raise TrainingError(f"{error}; the adapters are there.") from None


def _train_or_keep(method: str, prepared: _RunSetup) -> TrainingRecord:
    """Train one method, unless a resumed run has finished it before."""
    settings = prepared.settings
    earlier = prepared.earlier.get(method, PreviousRun())
    if earlier.record is not None and earlier.is_finished:
        prepared.say(f"{method} is finished; nothing to resume.")
        return earlier.record
    record = TrainingRecord(method, describe_arguments(settings), prepared.data)
    check_same_data(earlier, record)
    record.seconds = earlier.record.seconds if earlier.record is not None and earlier.checkpoints else 0.0
    try:
        return _train_one(record, prepared, settings.folder(method), earlier.checkpoints)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"The device ran out of memory while training {method}; lower --micro-batch or --max-length, or pass "
            "--gradient-checkpointing or --four-bit."
        ) from None


def _train_one(record: TrainingRecord, prepared: _RunSetup, folder: Path, checkpoints: Checkpoints) -> TrainingRecord:
    with empty_folders_undone(folder / CHECKPOINTS):
        trainer = _build_trainer(record, prepared, folder)
        if prepared.settings.resume:
            checkpoints = _usable(checkpoints, trainer, folder)
            prepared.say(going_on(record.method, checkpoints))
        record.device = device_name(trainer.args.device)
        record.trainable_parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        if prepared.examples.validation:
            record.validation_loss_before = trainer.evaluate_untrained()["eval_loss"]
        _begin(record, folder, checkpoints, trainer)
    newest = KeepNewest(checkpoints.intact)
    trainer.add_callback(newest)
    try:
        interrupted = _run_trainer(trainer, record, prepared, next(iter(checkpoints.intact), None))
    except SaveError as error:
        raise _ended(error, trainer, record, prepared, newest.path) from None
    record.status = "interrupted" if interrupted else "finished"
    _finish(record.method, trainer, prepared)
    if prepared.examples.validation and not interrupted:
        record.validation_loss_after = trainer.evaluate()["eval_loss"]
    try:
        save_adapter(trainer, prepared.tokenizer, record, folder)
    except SaveError as error:
        raise _ended(error, trainer, record, prepared, newest.path) from None
    if is_main_process() and not interrupted:
        newest.delete()
    prepared.say(f"The {record.method} adapter is in {named(folder)}.")
    return record


def _finish(method: str, trainer: SavingTrainer, prepared: _RunSetup) -> None:
    """What happens to a trained adapter before it is written."""
    finish = METHODS[method].finish
    if finish is not None:
        try:
            finish(trainer.model, prepared.settings.options.get(method, {}))
        except ValueError as error:
            raise TrainingError(str(error)) from None


def _usable(checkpoints: Checkpoints, trainer: SavingTrainer, folder: Path) -> Checkpoints:
    """The checkpoints that fit the model."""
    usable = fitting(checkpoints, trainer.model)
    if checkpoints and not usable.intact:
        raise nothing_whole(folder, usable.damaged)
    return usable


def _begin(record: TrainingRecord, folder: Path, checkpoints: Checkpoints, trainer: SavingTrainer) -> None:
    """Record in the folder what is being trained there, and move damaged checkpoints aside."""
    # Every process has read the checkpoints by then, and none is renamed before.
    trainer.accelerator.wait_for_everyone()
    if not is_main_process():
        return
    try:
        with writing(f"The record of the run in {named(folder)}"):
            folder.mkdir(parents=True, exist_ok=True)
            set_aside(checkpoints.damaged)
            record.save(folder)
    except SaveError as error:
        with suppress(OSError):
            (folder / f"{RECORD}.new").unlink()
        raise TrainingError(f"{error}; nothing was trained.") from None


def _ended(
    error: SaveError, trainer: SavingTrainer, record: TrainingRecord, prepared: _RunSetup, checkpoint: Path | None
) -> TrainingError:
    """The error for a run whose files cannot be written, saying where the trained adapter was saved."""
    folder = prepared.settings.folder(record.method)
    done = record.status == "finished"
    if not done:
        record.status = "interrupted"
    # An adapter is much smaller than a checkpoint and may fit where that did not.
    folder_written = keep_elsewhere(trainer, prepared.tokenizer, record, [] if done else [folder])
    state = "" if done else f" as of step {record.steps}"
    sentences = [
        f"the adapter{state} is in {named(folder_written)}"
        if folder_written
        else f"the adapter{state} could not be saved anywhere"
    ]
    if checkpoint is not None:
        sentences.append(f"fix that and pass --resume to continue from {checkpoint.name}")
    elif not folder_written:
        sentences.append("fix that and train again")
    return TrainingError("; ".join([str(error), *sentences]) + ".")


def _build_trainer(record: TrainingRecord, prepared: _RunSetup, folder: Path) -> SavingTrainer:
    settings, examples, tokenizer = prepared.settings, prepared.examples, prepared.tokenizer
    # Loading may draw random numbers, and quantised bases draw others, so the adapter gets its own seed.
    base = load_base(settings)
    set_seed(settings.seed)
    if not settings.train_closing_token and (others := confused_with(base, prepared.closing)):
        record.answers_end_with = learned_mark(examples.train, tokenizer)
        name = str(tokenizer.convert_ids_to_tokens(cast("int", prepared.closing)))
        prepared.say(unlearnable_sentence(name, others, record.answers_end_with))
    model = add_adapter(base, record.method, settings, turn_opening(tokenizer), prepared.closing)
    rates = METHODS[record.method].rates
    arguments = training_arguments(settings, folder, len(examples.train), bool(examples.validation))
    try:
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{named(folder)} can no longer be written: {reason(error)}.") from None
    try:
        trainer = SavingTrainer(
            model=model,
            args=arguments,
            train_dataset=examples.train,
            eval_dataset=examples.validation or None,
            data_collator=Collator(_pad_token(tokenizer)),
            callbacks=[LossGuard(), PeakMemory(record), *prepared.callbacks],
            watched=examples.validation or examples.train,
            group_by_length=settings.group_by_length,
            rates=None if rates is None else rates(model.peft_config["default"]),
            loss=(settings.loss, settings.loss_weight),
        )
    except (ImportError, RuntimeError) as error:  # as integrations raise them
        if not settings.report_to or is_out_of_memory(error):
            raise
        raise cannot_report(settings.report_to, error) from None
    # Progress is shown by our own callback, which `_run_trainer` adds.
    trainer.remove_callback(PrinterCallback)
    return trainer


def _pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in candidates if token is not None)


class _StartMarker(TrainerCallback):
    """Records whether the first step has begun, which means that the checkpoint is fully loaded."""

    def __init__(self) -> None:
        self.begun = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.begun = True


def _run_trainer(trainer: SavingTrainer, record: TrainingRecord, prepared: _RunSetup, checkpoint: Path | None) -> bool:
    """Train. Returns whether the user ended it."""
    progress = LiveProgress(prepared.console, record.method, prepared.settings.batch_size)
    stop, first = StopOnInterrupt(), _StartMarker()
    patience = prepared.settings.early_stopping
    best = None if patience is None else KeepBest(trainer)
    for callback in (progress, stop, first):
        trainer.add_callback(callback)
    if patience is not None and best is not None:
        trainer.add_callback(EarlyStoppingCallback(patience))
        trainer.add_callback(best)
    begin = time.monotonic()
    try:
        with stop:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            prepared.asked_to_end = stop.anyone_asked(trainer.args.device)
        if best is not None and not stop.stopped:
            prepared.say(best.restored())
        return stop.stopped
    except KeyboardInterrupt:
        return True
    except Exception as error:
        if first.begun or isinstance(error, (TrainingError, SaveError)) or is_out_of_memory(error):
            raise
        if checkpoint is None and prepared.settings.report_to:
            raise cannot_report(prepared.settings.report_to, error) from None
        if checkpoint is None:
            raise
        raise TrainingError(
            f"{checkpoint.name} in {named(checkpoint.parent)} can be opened, but the run cannot resume from it: "
            f"{first_line(error)}; move it away to resume from the one before, or leave --resume out and choose "
            "another --output."
        ) from None
    finally:
        progress.close()
        record.seconds += time.monotonic() - begin
        record.steps, record.total_steps = trainer.state.global_step, trainer.state.max_steps
        record.curves = trainer.state.log_history
