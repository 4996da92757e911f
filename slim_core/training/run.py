# SPDX-License-Identifier: Apache-2.0
"""A whole training run: data, base model, one adapter for each method, files."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from ..method import turn_opening
from .base import add_adapter, base_dtype, load_base, load_tokenizer
from .checkpoints import CHECKPOINTS, check_output, last_checkpoint
from .collator import Collator
from .encoding import Encoder
from .errors import TrainingError
from .examples import Examples, load_examples
from .progress import LiveProgress, LossGuard, StopOnInterrupt
from .report import (
    TrainingRecord,
    describe_arguments,
    describe_data,
    device_name,
    print_comparison,
    print_data,
    write_comparison,
    write_model_card,
)
from .settings import TrainSettings, is_main_process
from .trainer import SlimTrainer


WARMUP = 0.03  # share of the steps


@dataclass(frozen=True)
class Outcome:
    """What a run has left behind.

    Attributes:
        records: one for each method that was trained, in order.
        interrupted: whether the user ended it early. What was trained by then is saved.
    """

    records: list[TrainingRecord]
    interrupted: bool


@dataclass(frozen=True)
class _Prepared:
    """What every method of a run shares."""

    settings: TrainSettings
    tokenizer: PreTrainedTokenizerBase
    examples: Examples
    data: dict
    console: Console
    callbacks: Sequence[TrainerCallback]


def train(
    settings: TrainSettings, console: Console | None = None, callbacks: Sequence[TrainerCallback] = ()
) -> Outcome:
    """Train the methods of `settings` one after the other, on the same examples in the same order.

    Args:
        settings: the run.
        console: where progress goes; None for nowhere.
        callbacks: further callbacks of transformers' Trainer.

    Raises:
        TrainingError: if the settings, the data or the base model do not allow it.
    """
    console = console if console is not None and is_main_process() else Console(quiet=True)
    if is_main_process():
        check_output(settings)
    tokenizer, config = load_tokenizer(settings)
    encoder = Encoder(tokenizer)
    examples = load_examples(settings, encoder, config)
    print_data(console, examples, encoder)
    data = describe_data(examples, encoder)
    prepared = _Prepared(settings, tokenizer, examples, data, console, callbacks)
    records: list[TrainingRecord] = []
    for method in settings.methods:
        records.append(_train_or_keep(method, prepared))
        if records[-1].interrupted:
            break
    if len(settings.methods) > 1:
        print_comparison(console, records)
        if is_main_process():
            write_comparison(settings.output, records)
    return Outcome(records, records[-1].interrupted)


def _train_or_keep(method: str, prepared: _Prepared) -> TrainingRecord:
    """Train one method, unless a resumed run has finished it before."""
    settings, folder = prepared.settings, prepared.settings.folder(method)
    record = TrainingRecord(method, describe_arguments(settings), prepared.data)
    checkpoint = None
    if settings.resume:
        earlier = TrainingRecord.load(folder)
        if earlier is not None and earlier.status == "finished":
            prepared.console.print(f"{method} is finished; nothing to resume.")
            return earlier
        checkpoint = last_checkpoint(folder, earlier, record)
        begins = "begins anew: no checkpoint was written" if checkpoint is None else f"goes on from {checkpoint.name}"
        prepared.console.print(f"{method} {begins}.")
        record.seconds = earlier.seconds if earlier is not None and checkpoint is not None else 0.0
    try:
        return _train_one(record, prepared, folder, checkpoint)
    except torch.OutOfMemoryError:
        raise TrainingError(
            f"The device ran out of memory while training {method}; lower --micro-batch or --max-length, or pass "
            "--gradient-checkpointing or --four-bit."
        ) from None


def _train_one(record: TrainingRecord, prepared: _Prepared, folder: Path, checkpoint: Path | None) -> TrainingRecord:
    trainer = _build_trainer(record.method, prepared, folder)
    record.device = device_name(trainer.args.device)
    record.trainable_parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    if prepared.examples.validation:
        record.validation_loss_before = trainer.evaluate_untrained()["eval_loss"]
    if is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        record.save(folder)
    interrupted = _run_trainer(trainer, record, prepared, checkpoint)
    record.status = "interrupted" if interrupted else "finished"
    if prepared.examples.validation and not interrupted:
        record.validation_loss_after = trainer.evaluate()["eval_loss"]
    _save(trainer, record, prepared, folder)
    return record


def _build_trainer(method: str, prepared: _Prepared, folder: Path) -> SlimTrainer:
    settings, examples = prepared.settings, prepared.examples
    # Loading may draw numbers, a quantised base others than a whole one: the adapter is drawn from a seed of its own.
    base = load_base(settings)
    set_seed(settings.seed)
    model = add_adapter(base, method, settings, turn_opening(prepared.tokenizer))
    trainer = SlimTrainer(
        model=model,
        args=training_arguments(settings, folder, len(examples.train), bool(examples.validation)),
        train_dataset=examples.train,
        eval_dataset=examples.validation or None,
        data_collator=Collator(_pad_token(prepared.tokenizer)),
        callbacks=[LossGuard(), *prepared.callbacks],
        watched=examples.validation or examples.train,
    )
    # Progress is shown by our own callback, which `_run_trainer` adds.
    trainer.remove_callback(PrinterCallback)
    return trainer


def _pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    found = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in found if token is not None)


def training_arguments(settings: TrainSettings, folder: Path, examples: int, validate: bool) -> TrainingArguments:
    """transformers' arguments for our settings.

    Args:
        settings: the run.
        folder: of the adapter.
        examples: how many there are for training.
        validate: whether there are any for validation.
    """
    steps = settings.max_steps or math.ceil(settings.epochs * math.ceil(examples / settings.batch_size))
    return TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        per_device_train_batch_size=settings.per_device,
        per_device_eval_batch_size=settings.per_device,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        # Rounded down: a warm-up step has rate 0, which a run of few steps cannot spare.
        warmup_steps=int(WARMUP * steps),
        # Said aloud, since transformers trains over several processes without an accelerator only then.
        use_cpu=not torch.accelerator.is_available(),
        bf16=base_dtype(settings) == torch.bfloat16 if settings.bf16 is None else settings.bf16,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        seed=settings.seed,
        # The order of the examples must not hang on how many numbers a method draws.
        data_seed=settings.seed,
        logging_steps=settings.log_every,
        logging_first_step=True,
        # transformers would write the mean of the others in place of a loss that is no number.
        logging_nan_inf_filter=False,
        eval_strategy="epoch" if validate else "no",
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=1,
        report_to=settings.report_to or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
    )


def _run_trainer(trainer: SlimTrainer, record: TrainingRecord, prepared: _Prepared, checkpoint: Path | None) -> bool:
    """Train; whether the user ended it."""
    progress = LiveProgress(prepared.console, record.method, prepared.settings.batch_size)
    stop = StopOnInterrupt()
    trainer.add_callback(progress)
    trainer.add_callback(stop)
    begin = time.monotonic()
    try:
        with stop:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return stop.stopped
    except KeyboardInterrupt:
        return True
    finally:
        progress.close()
        record.seconds += time.monotonic() - begin
        record.steps, record.total_steps = trainer.state.global_step, trainer.state.max_steps
        record.curves = trainer.state.log_history


def _save(trainer: SlimTrainer, record: TrainingRecord, prepared: _Prepared, folder: Path) -> None:
    """The adapter, its tokenizer, card and record. Checkpoints stay where a run can be resumed."""
    # Every process takes part, since a sharded model is gathered first.
    trainer.save_model(str(folder))
    if not is_main_process():
        return
    prepared.tokenizer.save_pretrained(folder)
    write_model_card(folder, record)
    record.save(folder)
    if not record.interrupted:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    prepared.console.print(f"The {record.method} adapter is in {folder}.", markup=False)
