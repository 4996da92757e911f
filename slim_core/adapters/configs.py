# SPDX-License-Identifier: Apache-2.0
"""Rebuild the config from `adapter_config.json`: only listed fields are read, each by its own rule.

Nothing that could lead elsewhere survives: no path, no repository, no class or library name, no regular expression.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, NamedTuple, cast

from peft import LoraConfig

from ..baselines import KINDS, Method
from ..method import SlimConfig
from ..outside.errors import AdapterError, SizeError, quoted
from ..outside.files import CONFIG
from ..outside.limits import Limits
from ..peft_tools import PLAIN_STARTS
from . import fields
from .fields import Raw, refuse, unset
from .kinds import VARIANTS, RowConfig, listed_kinds, refuse_kind


TASKS = (None, "CAUSAL_LM")
# Not used for answers: notes and training settings.
NOTES = {
    "peft_type",
    "peft_version",
    "revision",
    "inference_mode",
    "qalora_group_size",
    "eva_config",
    "runtime_config",
}
# Fields that ms-swift adds: training settings, and a precision that the tensors already have.
INERT = {"lora_dtype", "lorap_emb_lr", "lorap_lr_ratio"}
LORA_FIELDS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "fan_in_fan_out",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
}
SLIM_FIELDS = {field.name for field in dataclasses.fields(SlimConfig)}
# Limits that SlimConfig itself does not have.
SLIM_MOST = {
    "num_clusters": "clusters",
    "num_experts": "experts",
    "num_identity": "experts",
    "r": "rank",
    "router_hidden": "rank",
}


class ReadConfig(NamedTuple):
    """A fresh config, and the name of the base that the adapter says it was trained on, to be shown and compared."""

    config: RowConfig
    trained_on: str | None
    warnings: tuple[str, ...] = ()


def read_config(raw: Raw, limits: Limits) -> ReadConfig:
    """Rebuild a config from parsed JSON.

    Raises:
        AdapterError: for a kind that cannot be a row, a value out of its limits, a field that asks for more than
            a row can do, or an unknown field that is set.
    """
    kind = raw.get("peft_type")
    if kind is None:
        refuse("peft_type", f"is missing; it must be {listed_kinds()}")
    trained_on = _trained_on(raw)
    _check_task(raw)
    _check_library(raw)
    if kind == "LORA":
        return ReadConfig(_lora(raw, limits), trained_on, _check_known(raw, LORA_FIELDS))
    if kind == "SLIM":
        return _slim(raw, limits, trained_on)
    if isinstance(kind, str) and kind in KINDS:
        return _other(raw, limits, trained_on, KINDS[kind])
    return refuse_kind(kind)


def check_rank(config: RowConfig, limits: Limits) -> None:
    """Raises SizeError if all experts of one Linear together have too high a rank."""
    experts = getattr(config, "num_experts", 1)
    experts = max(experts) if isinstance(experts, list) else experts
    rank = experts * max(getattr(config, "r", 0), *(getattr(config, "rank_pattern", None) or {}).values(), 0)
    if rank > limits.rank:
        raise SizeError(
            f"{CONFIG}: the experts of one Linear have rank {rank:,} together; at most {limits.rank:,} is allowed."
        )


def _trained_on(raw: Raw) -> str | None:
    """The base it names, for display only: never used as a path or fetched as an id."""
    name = fields.text(raw, "base_model_name_or_path")
    return quoted(name, 120)[1:-1] if name else None


def _check_task(raw: Raw) -> None:
    if raw.get("task_type") not in TASKS:
        refuse("task_type", f"is {quoted(raw['task_type'])}; only CAUSAL_LM adapters are supported")


def _check_library(raw: Raw) -> None:
    """PEFT imports what `auto_mapping` names; we do not, and refuse a config that names another library."""
    mapping = raw.get("auto_mapping")
    if unset(mapping):
        return
    library = mapping.get("parent_library") if isinstance(mapping, dict) else mapping
    if not isinstance(library, str) or not library.startswith("transformers."):
        refuse("auto_mapping", f"names the library {quoted(library)}; leave the field out, it is not needed")


def _check_variants(raw: Raw) -> None:
    for field, (effect, remedy) in VARIANTS.items():
        if not unset(raw.get(field)):
            refuse(field, f"is {quoted(raw[field])}: {effect}; {remedy}")


def _check_known(raw: Raw, known: set[str]) -> tuple[str, ...]:
    """Refuse an unknown field that is set, since it could change the answer; list unknown fields that are not set."""
    unknown = {field: value for field, value in raw.items() if field not in {*known, *NOTES, *VARIANTS}}
    for field, value in unknown.items():
        inert = field in INERT or field.endswith("_version")
        if not (_says_nothing(value) or (inert and isinstance(value, (str, int, float)))):
            raise AdapterError(
                f"{CONFIG}: {quoted(field)} is unknown and set to {quoted(value)}, which could change the answer; "
                "leave it out if it does not, or train a plain LoRA."
            )
    if not unknown:
        return ()
    listed = ", ".join(quoted(field) for field in sorted(unknown)[:5])
    more = f" and {len(unknown) - 5:,} more" if len(unknown) > 5 else ""
    return (f"Unknown fields that cannot change an answer were ignored: {listed}{more}.",)


def _says_nothing(value: Any) -> bool:
    """Whether a field of an unknown name is not set, nor anything in it."""
    return unset(value) or value == "" or (isinstance(value, dict) and all(map(_says_nothing, value.values())))


def _check_start(raw: Raw) -> None:
    """Refuse initialisations that change the base's weights."""
    start = raw.get("init_lora_weights", True)
    # MiCA only chooses the initial values and which factor is frozen; the base is not changed.
    if not any(type(start) is type(plain) and start == plain for plain in (*PLAIN_STARTS, "mica")):
        refuse(
            "init_lora_weights",
            f"is {quoted(start)}, which changes the base's weights or is unknown; save the adapter with "
            "`path_initial_model_for_weight_conversion` to get a plain LoRA",
        )


def _lora(raw: Raw, limits: Limits) -> LoraConfig:
    _check_variants(raw)
    _check_start(raw)
    if raw.get("bias") is not None:
        fields.one_of(raw, "bias", ("none",))
    if raw.get("megatron_core") is not None:
        fields.one_of(raw, "megatron_core", ("megatron.core",))
    fields.flag(raw, "fan_in_fan_out")  # says how PEFT should merge; a row is never merged
    _check_dropout(raw)
    if "r" not in raw or "lora_alpha" not in raw:
        refuse("r" if "r" not in raw else "lora_alpha", "is missing")
    common = _common(raw, limits)
    return LoraConfig(
        r=fields.whole(raw, "r", 8, 1, limits.rank),
        lora_alpha=fields.positive(raw["lora_alpha"], "lora_alpha", limits.alpha),  # type: ignore[arg-type]  # a factor
        use_rslora=fields.flag(raw, "use_rslora"),
        use_dora=fields.flag(raw, "use_dora"),
        bias="none",
        **common,
    )


def _check_dropout(raw: Raw) -> None:
    dropout = raw.get("lora_dropout", 0)
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        refuse("lora_dropout", f"is {quoted(dropout)}; it must be a number from 0 to below 1")


def _common(raw: Raw, limits: Limits) -> dict[str, Any]:
    """Fields common to LoRA and SLIM: the Linears, their ranks and scales, and modules that are replaced entirely."""
    target_modules = fields.targets(raw, limits)
    layers = fields.layers(raw)
    pattern = fields.layers_pattern(raw, limits)
    if layers is not None and not isinstance(target_modules, list):
        refuse("layers_to_transform", "needs `target_modules` as a list of names")
    if layers is None and pattern is not None:
        refuse("layers_pattern", "is set, so `layers_to_transform` must say which blocks")
    return {
        "target_modules": target_modules,
        "exclude_modules": fields.names(raw, "exclude_modules", limits),
        "modules_to_save": fields.names(raw, "modules_to_save", limits),
        "trainable_token_indices": fields.token_indices(raw, limits),
        "layers_to_transform": layers,
        "layers_pattern": pattern,
        "rank_pattern": fields.pattern(
            raw, "rank_pattern", limits, lambda rank, field: fields.whole({field: rank}, field, 1, 1, limits.rank)
        ),
        "alpha_pattern": fields.pattern(
            raw, "alpha_pattern", limits, lambda alpha, field: fields.positive(alpha, field, limits.alpha)
        ),
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
    }


def _slim(raw: Raw, limits: Limits, trained_on: str | None) -> ReadConfig:
    _check_variants(raw)
    ignored = _check_known(raw, SLIM_FIELDS)
    _check_fingerprint(raw)
    if raw.get("merge") == "dare" and raw.get("mask_rate", 0.1) != 0 and not limits.entrywise:
        refuse(
            "merge",
            "is 'dare', the slow reference implementation, which would slow down every row; train with merge='fast'",
        )
    for field, limit in SLIM_MOST.items():
        if field in raw:
            fields.whole(raw, field, 0, 0, getattr(limits, limit))
    if "alpha" in raw:
        fields.positive(raw["alpha"], "alpha", limits.alpha)
    if raw.get("yield_strength", 0) != 0:
        fields.positive(raw["yield_strength"], "yield_strength", limits.alpha)
    dropped = NOTES | {"auto_mapping", "base_model_name_or_path", "modules_to_save"}
    given = {field: value for field, value in raw.items() if field in SLIM_FIELDS - dropped}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `_oddities` says it
            config = SlimConfig(**(given | _common(raw, limits)))
    except (ValueError, TypeError) as error:
        raise AdapterError(f"{CONFIG}: {error}") from None
    config.target_modules = config.target_modules or fields.ALL_LINEAR
    return ReadConfig(config, trained_on, (*ignored, *_oddities(config)))


def _other(raw: Raw, limits: Limits, trained_on: str | None, method: Method) -> ReadConfig:
    """A method of `slim_core.baselines`, whose config checks its own fields."""
    _check_variants(raw)
    known = {field.name for field in dataclasses.fields(method.config_cls)}
    ignored = _check_known(raw, known)
    for field in ("r", "num_experts"):
        bound = limits.rank if field == "r" else limits.experts
        for value in raw[field] if isinstance(raw.get(field), list) else [raw.get(field)]:
            if value is not None:
                fields.whole({field: value}, field, 0, 0, bound)
    if "alpha" in raw:
        fields.positive(raw["alpha"], "alpha", limits.alpha)
    common = {name: value for name, value in _common(raw, limits).items() if name in known}
    if common["target_modules"] is None:
        refuse("target_modules", "is unset; it must list names such as 'q_proj'")
    dropped = NOTES | {"auto_mapping", "base_model_name_or_path", "modules_to_save"}
    given = {field: value for field, value in raw.items() if field in known - dropped}
    try:
        config = cast(RowConfig, method.config_cls(**(given | common)))
    except (ValueError, TypeError) as error:
        raise AdapterError(f"{CONFIG}: {error}") from None
    wrong = method.experts.refused(config) if method.experts is not None else None
    if wrong is not None:
        refuse(*wrong)
    return ReadConfig(config, trained_on, ignored)


def _oddities(config: SlimConfig) -> tuple[str, ...]:
    """Settings that are allowed but hardly intended. SlimConfig's own warning goes to the log, which visitors do not
    see.
    """
    if config.routed and config.top_k == 1:
        return ("`top_k` is 1: the expert that is kept always has weight 1, so the router cannot have learned much.",)
    return ()


def _check_fingerprint(raw: Raw) -> None:
    fingerprint = raw.get("base_fingerprint")
    if fingerprint is None:
        return
    if not isinstance(fingerprint, dict) or not all(isinstance(shapes, str) for shapes in fingerprint.values()):
        refuse(
            "base_fingerprint",
            f"is {quoted(fingerprint)}; it must be a table of shapes by name, as the library writes it",
        )
