# SPDX-License-Identifier: Apache-2.0
"""What the registry knows about a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner

from ..method import SlimConfig
from .experts import Experts


Configure = Callable[[SlimConfig, Mapping[str, Any], Mapping[str, tuple[int, int]]], PeftConfig]


@dataclass(frozen=True)
class Method:
    """A method that can be trained, checked, and shown as a row.

    Attributes:
        name: its name for `--method`.
        title: its name for people.
        peft_type: the PEFT type in its files.
        configure: makes its configuration from three arguments: SLIM's configuration of the same run, which sets the
            budget; the user's options for this method; and (C_in, C_out) of the base's Linears except its head, by
            name. Raises ValueError or TypeError for options that are not possible.
        config_cls: the class of its configuration.
        tuner: the PEFT tuner, where it is one of this package.
        experts: the class that computes it at one place, if the engine computes its rows with that.
        finish: what happens to a trained adapter before it is written.
        rates: computes from its configuration, for endings of parameter names, the factor on the learning rate of
            these parameters, which get no weight decay.
        options: the options that `configure` takes and their defaults, where they are not the fields of `config_cls`.
        own_places: whether it chooses the modules to adapt itself, so that it is given no targets.
    """

    name: str
    title: str
    peft_type: str
    configure: Configure
    config_cls: type[PeftConfig]
    tuner: type[BaseTuner] | None = None
    experts: type[Experts] | None = None
    finish: Callable[[PeftModel, Mapping[str, Any]], None] | None = None
    rates: Callable[[Any], dict[str, float]] | None = None
    options: Mapping[str, Any] | None = None
    own_places: bool = False

    def option_names(self) -> set[str]:
        """Options that apply only to this method."""
        if self.options is not None:
            return set(self.options)
        return {field.name for field in fields(self.config_cls)} - GIVEN


# Set by the run for all methods alike, or by the library.
GIVEN = {
    *("auto_mapping", "base_model_name_or_path", "exclude_modules", "format_version", "inference_mode"),
    *("layers_pattern", "layers_to_transform", "modules_to_save", "peft_type", "peft_version", "revision"),
    *("target_modules", "task_type", "trainable_token_indices"),
}
SHARED = (
    *("dropout", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"),
    "trainable_token_indices",
)


def named_targets(slim: SlimConfig) -> set[str] | None:
    """The Linears that the user named; None if there are none."""
    return None if slim.target_modules == "all-linear" else slim.target_modules  # type: ignore[return-value]


def common_fields(slim: SlimConfig) -> dict[str, Any]:
    """The settings that every method in this package takes from SLIM's configuration: an expert's rank and scale, and
    the targets.
    """
    return {name: getattr(slim, name) for name in SHARED} | {
        "task_type": "CAUSAL_LM",
        "r": slim.r,
        "alpha": slim.alpha,
        "target_modules": named_targets(slim),
    }
