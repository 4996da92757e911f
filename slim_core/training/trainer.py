# SPDX-License-Identifier: Apache-2.0
"""transformers' Trainer with SLIM's own losses, its routing in the log, and a validation loss per token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from ..method import SlimType, context_of
from ..peft_tools import trace_routing
from .encoding import IGNORED, EncodedExample
from .losses import TaskLoss
from .order import GroupedByLength


WATCHED = 4  # examples whose routing is logged


class SlimTrainer(Trainer):
    """Trains any adapter, with additions that apply only if it is SLIM.

    The logged `loss` is what is minimised, SLIM's losses included. `loss_l1` and `loss_balance` are these, as means
    over the forwards since the last log. `identity_share` (0 to 1) and `distance` (in standard deviations) are means
    over layers and tokens of a fixed batch. `eval_loss` is the mean over the answer tokens of the validation examples,
    in nats, so that it depends on no batch size.

    Args:
        watched: examples whose routing is logged; the first four count.
        group_by_length: put training examples of like length into the same step.
        rates: by ending of a parameter's name, how many times the learning rate it gets, without weight decay.
        loss: of the task, and its factor.
    """

    model: nn.Module

    def __init__(
        self,
        *args: Any,
        watched: Sequence[EncodedExample],
        group_by_length: bool = False,
        rates: Mapping[str, float] | None = None,
        loss: tuple[str, float | None] = ("cross-entropy", None),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._context = context_of(self.model)
        self._rates = dict(rates or {})
        self._loss = TaskLoss(cast(PeftModel, self.model), *loss)
        self._routed = isinstance(self.model, PeftModel) and self.model.peft_type == SlimType.SLIM
        self._watched = list(watched[:WATCHED])
        self._group_by_length = group_by_length
        self._extra: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.args.device))
        self._forwards = 0
        self._evaluated: list[Tensor] = []

    # -- order ---------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if not self._group_by_length:
            return super()._get_train_sampler(train_dataset)
        examples = cast("Sequence[EncodedExample]", self.train_dataset if train_dataset is None else train_dataset)
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        assert self.args.data_seed is not None  # the run names one
        return GroupedByLength(step, [len(example.input_ids) for example in examples], self.args.data_seed)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As transformers', with parameters of their own rates in groups of their own."""
        optimizer = super().create_optimizer(model)
        named = (self.model if model is None else model).named_parameters()
        by_rate: dict[float, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in named:
            parts = name.split(".")
            rate = next((rate for ending, rate in self._rates.items() if ending in parts), None)
            if rate is not None and parameter.requires_grad:
                by_rate[rate].append(parameter)
        moved = {id(parameter) for parameters in by_rate.values() for parameter in parameters}
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in moved]
        for rate, parameters in by_rate.items():
            group = {"params": parameters, "lr": self.args.learning_rate * rate, "weight_decay": 0.0}
            optimizer.add_param_group(group)
        return optimizer

    # -- losses --------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The model's loss, which in training includes SLIM's own losses."""
        # In evaluation, the mean over this device's tokens, which `evaluation_loop` weights by their number.
        tokens = num_items_in_batch if model.training else None
        with self._loss.knowing_the_base(inputs):
            loss, outputs = super().compute_loss(model, inputs, True, tokens)
        if not model.training:
            self._note_evaluated(loss, inputs["labels"])
        else:
            self._note_extra_losses()
        return (loss, outputs) if return_outputs else loss

    def _note_extra_losses(self) -> None:
        self._forwards += 1
        added = None if self._context is None else self._context.losses.added
        for name, loss in (added or {}).items():
            self._extra[name] += loss.detach()

    def _note_evaluated(self, loss: Tensor, labels: Tensor) -> None:
        tokens = (labels[:, 1:] != IGNORED).sum()
        self._evaluated.append(torch.stack([loss.detach().float() * tokens, tokens.float()]))

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Like transformers' loop, but with the mean over tokens instead of over batches."""
        self._evaluated = []
        # A data loader draws a random number when it starts, which a run resumed after an evaluation would not have
        # drawn.
        with torch.random.fork_rng(devices=[]):
            output = super().evaluation_loop(*args, **kwargs)
        # Over several devices the last batch may hold a few examples twice; so it is in transformers' own mean.
        total, tokens = self.accelerator.reduce(torch.stack(self._evaluated).sum(0)).tolist()
        assert output.metrics is not None  # the loop has put its own mean there
        output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_loss"] = total / tokens
        return output

    def evaluate_untrained(self) -> dict[str, float]:
        """Like `evaluate`, before any training.

        accelerate marks a model prepared for evaluation as prepared, and would then train it unchanged:
        with several processes, each only on its own batches.
        """
        try:
            return self.evaluate()
        finally:
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            self.accelerator.free_memory()
            vars(self.model).pop("_is_accelerate_prepared", None)

    # -- log -----------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the method's own losses, and SLIM's routing, to what is logged at a training step."""
        if "loss" in logs:
            logs |= self._mean_extra_losses()
        if self._routed and "loss" in logs:
            logs |= self.routing()
        super().log(logs, start_time)

    def _mean_extra_losses(self) -> dict[str, float]:
        means = {f"loss_{name}": loss.item() / self._forwards for name, loss in self._extra.items()}
        self._extra.clear()
        self._forwards = 0
        return means

    @torch.no_grad()
    def routing(self) -> dict[str, float]:
        """Identity share and distance on the watched examples, means over layers and tokens."""
        # The collator is our own, and takes examples.
        batch = self._prepare_inputs(self.data_collator(self._watched))  # type: ignore[arg-type]
        training = self.model.training
        self.model.eval()
        with trace_routing(self.model) as trace, self.autocast_smart_context_manager():
            self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        self.model.train(training)
        rows = [trace.row(row) for row in trace.rows]
        if not rows:
            return {}
        return {
            "identity_share": torch.cat([row.identity.flatten() for row in rows]).mean().item(),
            "distance": torch.cat([row.distance.flatten() for row in rows]).mean().item(),
        }

    # -- files ---------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # PEFT would save the base's own head beside an adapter on it, which whoever loads it has.
        vars(self.model)["save_pretrained"] = partial(
            cast(PeftModel, self.model).save_pretrained, save_embedding_layers=False
        )
        try:
            super()._save(output_dir, state_dict)
        finally:
            del vars(self.model)["save_pretrained"]
        # A pickle that nothing reads. Recipients of the folder should not have to trust it.
        folder = cast("str", output_dir or self.args.output_dir)  # the run names one
        (Path(folder) / TRAINING_ARGS_NAME).unlink(missing_ok=True)
