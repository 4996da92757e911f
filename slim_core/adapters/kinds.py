# SPDX-License-Identifier: Apache-2.0
"""Adapters that are not supported: which PEFT type or LoRA variant it is, and what its owner can do."""

from __future__ import annotations

from typing import NoReturn

from peft import LoraConfig, OFTConfig, PeftType

from ..baselines import KINDS, ExpertsConfig
from ..method import SlimConfig
from ..outside.errors import AdapterError, quoted
from ..outside.files import CONFIG


# Of the adapters that can be rows.
RowConfig = LoraConfig | SlimConfig | OFTConfig | ExpertsConfig
# They add tokens or prefixes to the prompt, or train parts of the model itself; none adds anything to a Linear.
PROMPTS = {
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
    "CARTRIDGE",
}
OTHER_PARTS = {"LN_TUNING", "TRAINABLE_TOKENS", "BEFT"}
# Types whose layers PEFT can turn into LoRAs (`supports_lora_conversion`).
CONVERTIBLE = {
    "C3A",
    "DELORA",
    "FOURIERFT",
    "GRALORA",
    "HIRA",
    "LOHA",
    "LOKR",
    "MISS",
    "PSOFT",
    "RANDLORA",
    "SHIRA",
    "TINYLORA",
    "UNILORA",
    "VBLORA",
    "VERA",
    "WAVEFT",
}
RETRAIN = "train it again as LORA or SLIM"
CONVERT = "convert it with `peft.save_as_lora` and use the result"

# Fields with which a LoRA is more than a low-rank update: what they do, and what the owner can do about it.
VARIANTS = {
    "use_qalora": ("this is a QA-LoRA, which pools its input", "train with use_qalora=false"),
    "use_bdlora": ("this is a BD-LoRA, whose factors are block-diagonal", "train without use_bdlora"),
    "lora_bias": ("it trains a bias in the factors", "train with lora_bias=false"),
    "layer_replication": ("it would copy and reorder the base's own blocks", "train on the base as it is"),
    "target_parameters": ("it adapts bare parameters, not Linears", "train with target_modules alone"),
    "alora_invocation_tokens": ("this is an activated LoRA, which waits for certain tokens", "train a plain LoRA"),
    "megatron_config": ("it was made for Megatron's parallel layers", "convert it to a plain LoRA"),
    "arrow_config": ("this is an Arrow mixture of other LoRAs", "use one of the LoRAs"),
    "kasa_config": ("this is a KaSA, which also changes the base's weights", "train a plain LoRA"),
    "velora_config": ("this is a VeLoRA", "train a plain LoRA"),
    "monteclora_config": ("this is a Monte-Carlo LoRA, which samples its factors", "train a plain LoRA"),
    "corda_config": ("CorDA changes the base's weights", "convert it with path_initial_model_for_weight_conversion"),
    "loftq_config": ("LoftQ changes the base's weights", "train with init_lora_weights=true"),
    "lora_ga_config": (
        "LoRA-GA changes the base's weights",
        "convert it with path_initial_model_for_weight_conversion",
    ),
    "ensure_weight_tying": ("it trains copies of tied modules", "train without modules_to_save"),
}


def listed_kinds() -> str:
    """The kinds that can be rows, for a sentence."""
    *others, last = ("LORA", "SLIM", *KINDS)
    return f"{', '.join(map(repr, others))} or {last!r}"


def refuse_kind(kind: object) -> NoReturn:
    """Raises AdapterError for an adapter type that is not supported."""
    known = isinstance(kind, str) and kind in PeftType.__members__
    if not known:
        raise AdapterError(f"{CONFIG}: `peft_type` is {quoted(kind)}; it must be {listed_kinds()}.")
    if kind in CONVERTIBLE:
        remedy = CONVERT
    elif kind == "ADALORA":
        remedy = "its ranks are fixed after training, so write B·diag(E)·A as a LORA with rank_pattern, or " + RETRAIN
    elif kind in PROMPTS:
        remedy = "it works on the prompt and adds nothing to a Linear, so " + RETRAIN
    elif kind in OTHER_PARTS:
        remedy = "it trains other parts of the base than Linears, so " + RETRAIN
    else:
        remedy = RETRAIN
    supported = ", ".join(("LORA", *KINDS))
    raise AdapterError(f"{CONFIG}: `peft_type` is {kind}, but only {supported} and SLIM are supported; {remedy}.")
