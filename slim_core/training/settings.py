# SPDX-License-Identifier: Apache-2.0
"""All settings of a training run, with the defaults and where they come from."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..baselines import METHODS
from ..method import SlimConfig
from .errors import TrainingError
from .losses import LOSSES


DEFAULT_LENGTH = 2048
DEFAULT_SPLIT = "train"
# SlimConfig's fields that have a flag of their own.
OWN_FLAGS = {
    "r": "--rank",
    "num_experts": "--experts",
    "num_identity": "--identity",
    "top_k": "--top-k",
    "alpha": "--alpha",
    "dropout": "--dropout",
    "target_modules": "--target",
}
# Those too, and fields that are not meant for users.
NOT_EXTRA = {
    *OWN_FLAGS,
    *("peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping"),
    *(
        "trainable_token_indices",
        "peft_version",
        "format_version",
        "base_fingerprint",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
    ),
}


@dataclass(frozen=True)
class Columns:
    """Names of the columns, if they are not the usual ones.

    Attributes:
        messages: the column with lists of messages.
        prompt: the column with the question.
        completion: the column with the answer.
        input: a column with more text for the question.
        text: the column with plain text, all of which is learned.
        system: the column with the system text.
    """

    messages: str | None = None
    prompt: str | None = None
    completion: str | None = None
    input: str | None = None
    text: str | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        pair = (self.prompt, self.completion)
        if self.text is not None and (*pair, self.input, self.messages, self.system) != (None,) * 5:
            raise TrainingError("--text-column must be used alone; leave out the flags for the other columns.")
        if self.messages is not None and (*pair, self.input) != (None, None, None):
            raise TrainingError(
                "--messages-column must be used alone or with --system-column; leave out the flags for the other "
                "columns."
            )
        if (self.prompt is None) != (self.completion is None) or (self.input is not None and self.prompt is None):
            raise TrainingError("Name both --prompt-column and --completion-column; --input-column is optional.")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One training run of one or several methods on the same data, order and budget.

    The paper's are: r 16, 8 LoRA and 2 identity experts, top-2, learning rate 3e-4, 2 epochs, batch 16. It names no
    schedule, length, seed or alpha: the rate falls linearly after a warm-up of 3 % of the steps, texts have up to
    2048 tokens (or the model's limit), and alpha is 2 r, the usual one. LoRA and DoRA get the same total rank, 8 x 16,
    and the same factor alpha / r. 5 % of the data are kept for validation.

    Attributes:
        base: folder or Hub id of the base model.
        data: files, folders or Hub ids.
        output: folder of the adapter; with several methods, of one folder each.
        methods: of `slim_core.baselines.METHODS`, in the order in which they are trained.
        columns: names of the columns.
        split, subset, revision: of Hub data sets.
        validation: files or Hub ids for validation, in place of a share of `data`.
        validation_split: a split of the Hub data sets for validation, in place of a share.
        validation_share: share of the examples that is kept for validation, 0 to below 1.
        max_length: tokens an example may have; None for the model's limit or 2048, whichever is less.
        skip_long: leave longer examples out, and say how many, rather than stop.
        base_revision: version of a Hub base model.
        four_bit: load the base in 4 bits (NF4, double quantisation).
        r, num_experts, num_identity, top_k, alpha, dropout, target_modules: see `SlimConfig`.
        slim: further fields of `SlimConfig`.
        options: by method, fields of its own configuration.
        loss: of the task, "cross-entropy" or another of `LOSSES`.
        loss_weight: factor of what that loss adds; None for its own.
        train_closing_token: train the row of the token that closes answers too, in the embedding and in the head. A
            base that was never trained on chats cannot end its answers otherwise.
        epochs: passes over the training examples.
        max_steps: optimiser steps, in place of `epochs`.
        learning_rate: the highest.
        batch_size: examples of one optimiser step, over all devices.
        micro_batch: examples of one forward on one device; None for as many as one step has.
        seed: of the split, the order, the first weights and the masks.
        bf16: multiply in bfloat16; None means yes if the device is a GPU that supports it. Some CPUs have it too.
        gradient_checkpointing: recompute activations, for less memory.
        group_by_length: put examples of like length into the same step. Less padding, so faster where lengths differ.
        early_stopping: end after this many validations without a lower loss, and keep the adapter of the lowest; None
        to
            train to the end.
        validate_every: steps between validations; None for once in each epoch.
        log_every, save_every: in optimiser steps.
        report_to: transformers' integrations that also get the logs, such as tensorboard.
        resume: resume from the last checkpoint in `output`.
        start_from: folder of an adapter of the same base and method, from which the training goes on; its own
            configuration counts. None for a new one.
    """

    base: str
    data: list[str]
    output: Path
    methods: list[str] = field(default_factory=lambda: ["slim"])
    columns: Columns = field(default_factory=Columns)
    split: str = DEFAULT_SPLIT
    subset: str | None = None
    revision: str | None = None
    validation: list[str] = field(default_factory=list)
    validation_split: str | None = None
    validation_share: float = 0.05
    max_length: int | None = None
    skip_long: bool = False
    base_revision: str | None = None
    four_bit: bool = False
    r: int = 16
    num_experts: int = 8
    num_identity: int = 2
    top_k: int = 2
    alpha: float | None = None
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=list)
    slim: dict[str, Any] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    loss: str = "cross-entropy"
    loss_weight: float | None = None
    train_closing_token: bool = False
    epochs: float = 2.0
    max_steps: int | None = None
    learning_rate: float = 3e-4
    batch_size: int = 16
    micro_batch: int | None = None
    seed: int = 42
    bf16: bool | None = None
    gradient_checkpointing: bool = False
    group_by_length: bool = False
    early_stopping: int | None = None
    validate_every: int | None = None
    log_every: int = 10
    save_every: int = 200
    report_to: list[str] = field(default_factory=list)
    resume: bool = False
    start_from: str | None = None

    def __post_init__(self) -> None:
        """Raises TrainingError for the first setting that cannot be."""
        self._check_lists()
        self._check_numbers()
        self._check_loss()
        self.slim_config()
        _ = self.accumulation

    def _check_lists(self) -> None:
        if not self.data:
            raise TrainingError("No data were given; name a file or a Hub data set with --data.")
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown or not self.methods:
            raise TrainingError(
                f"--method must be one of {', '.join(METHODS)}, not {', '.join(unknown) or 'nothing'}."
            )
        if self.start_from is not None and len(self.methods) > 1:
            raise TrainingError("--start-from continues from one adapter; name one --method, the adapter's own.")
        if len(set(self.methods)) < len(self.methods):
            raise TrainingError(f"--method names {', '.join(self.methods)}; name each method once.")
        for method, options in self.options.items():
            if method not in self.methods:
                raise TrainingError(f"--option names {method}, which is not trained here; name it with --method too.")
            known = METHODS[method].option_names()
            wrong = next((name for name in options if name not in known), None)
            if wrong is not None:
                known_options = f"there are {', '.join(sorted(known))}" if known else "there are none"
                also = " (of SLIM, pass --slim)" if method == "slim" else ""
                raise TrainingError(f"--option {method}.{wrong}: {method} has no such option; {known_options}{also}.")
        if self.validation and self.validation_split:
            raise TrainingError("Give --validation or --validation-split, not both.")

    def _check_numbers(self) -> None:
        counts = (
            "batch_size",
            "log_every",
            "save_every",
            "micro_batch",
            "max_steps",
            "early_stopping",
            "validate_every",
        )
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainingError(f"{_flag(name)} must be 1 or more, not {value}.")
        for name in ("epochs", "learning_rate"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise TrainingError(f"{_flag(name)} must be above 0, not {value}.")
        if not 0 <= self.validation_share < 1:
            raise TrainingError(f"--validation-share must be at least 0 and below 1, not {self.validation_share}.")
        if self.max_length is not None and self.max_length < 2:
            raise TrainingError(f"--max-length must be 2 tokens or more, not {self.max_length}.")
        none = self.validation_share == 0 and not self.validation and self.validation_split is None
        if self.early_stopping is not None and none:
            raise TrainingError(
                "--early-stopping needs validation data; set --validation-share above 0, or give some."
            )
        if not 0 <= self.seed < 2**31:
            raise TrainingError(f"--seed must be at least 0 and below 2**31, not {self.seed}.")

    def _check_loss(self) -> None:
        if self.loss not in LOSSES:
            raise TrainingError(f"--loss must be one of {', '.join(LOSSES)}, not {self.loss}.")
        if self.loss_weight is not None:
            if LOSSES[self.loss].weight is None:
                raise TrainingError(f"--loss-weight has no meaning with --loss {self.loss}; leave it out.")
            if not (self.loss_weight >= 0 and math.isfinite(self.loss_weight)):
                raise TrainingError(f"--loss-weight must be 0 or more, not {self.loss_weight}.")

    def slim_config(self) -> SlimConfig:
        """The configuration of SLIM.

        Raises:
            TrainingError: if a field does not exist or its value cannot be.
        """
        allowed = {f.name for f in fields(SlimConfig)} - NOT_EXTRA
        unknown = [name for name in self.slim if name not in allowed]
        if unknown and unknown[0] in OWN_FLAGS:
            raise TrainingError(f"--slim {unknown[0]}: pass {OWN_FLAGS[unknown[0]]} instead, for all methods alike.")
        if unknown:
            raise TrainingError(f"--slim has no field {unknown[0]!r}; there are {', '.join(sorted(allowed))}.")
        try:
            return SlimConfig(
                task_type="CAUSAL_LM",
                r=self.r,
                num_experts=self.num_experts,
                num_identity=self.num_identity,
                top_k=self.top_k,
                alpha=2.0 * self.r if self.alpha is None else self.alpha,
                dropout=self.dropout,
                target_modules=self.target_modules or "all-linear",
                **self.slim,
            )
        except (TypeError, ValueError) as error:
            raise TrainingError(f"These settings of SLIM are invalid: {error}") from None

    @property
    def accumulation(self) -> int:
        """Forward passes per optimiser step on one device.

        Raises:
            TrainingError: if the batch cannot be divided that way.
        """
        devices = world_size()
        if self.micro_batch is None:
            per_device, remainder = divmod(self.batch_size, devices)
            accumulation = 1
        else:
            per_device = self.micro_batch
            accumulation, remainder = divmod(self.batch_size, per_device * devices)
        if remainder or not per_device or not accumulation:
            raise TrainingError(
                f"--batch-size {self.batch_size} is not a multiple of --micro-batch {per_device or 1} times {devices} "
                "device(s); choose sizes that divide it."
            )
        return accumulation

    @property
    def per_device(self) -> int:
        """Examples per forward pass on one device."""
        return self.batch_size // (self.accumulation * world_size())

    def folder(self, method: str) -> Path:
        """Where a method's adapter goes."""
        return self.output if len(self.methods) == 1 else self.output / method


def world_size() -> int:
    """Number of processes that train together, as set by torchrun and accelerate."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
