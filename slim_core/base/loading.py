# SPDX-License-Identifier: Apache-2.0
"""Deciding where and how a base model is loaded, and loading it. Safetensors only; no code of a model is run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..extras import lacking
from ..method import guard_cpu_4bit
from ..outside.errors import first_line
from .choice import BaseChoice, named_folder
from .config import read_base_config
from .devices import all_gpus, answer_dtype, bytes_on, chosen_device, device_memory
from .errors import EngineError, is_out_of_memory, out_of_memory_sentence
from .estimate import Bits, MemoryNeed, empty_model, estimate, quantised_weights
from .families import check_family, measured
from .files import base_files
from .formatting import count, size
from .progress import OnProgress, weight_progress
from .prompts import Prompts
from .untrusted import read_untrusted


# LLM.int8's full-precision columns are chosen over the whole batch, so an answer would depend on the others in the
# batch, and a token on later ones.
NO_THRESHOLD = 0.0


def read_tokenizer(base: str, revision: str | None = None) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
    """The tokenizer and the configuration of a base model.

    Raises:
        EngineError: if there is no base model of that name.
    """
    with base_files(BaseChoice(base, revision)) as files:
        config = files.config()
    return _tokenizer(_located(base), base, revision), config


def _located(base: str) -> str:
    """A name as transformers takes it: a folder with the home folder in place of ~, or a Hub id."""
    return str(named_folder(base) or base)


def _tokenizer(base: str, label: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(base, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise EngineError(
            f"The tokenizer of {label} cannot be loaded: {first_line(error).replace(base, label)}; put its "
            "tokenizer.json and tokenizer_config.json beside the model."
        ) from None


def four_bit_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation, as QLoRA has it."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def quantisation_config(bits: Bits, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How the Linears are quantised; None if they are not."""
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=NO_THRESHOLD)
    return four_bit_config(dtype) if bits == 4 else None


def read_model(
    base: str,
    revision: str | None,
    dtype: torch.dtype,
    quantisation: BitsAndBytesConfig | None = None,
    device: torch.device | None = None,
    config: PreTrainedConfig | None = None,
    on_progress: OnProgress = lambda done, total: None,
    **options: Any,
) -> PreTrainedModel:
    """A causal language model, in evaluation mode.

    Args:
        base: folder or Hub id.
        revision: version on the Hub.
        dtype: of the weights that are not quantised.
        quantisation: of the others.
        device: where a quantised model goes; it cannot be moved later. Others are on the CPU.
        config: as `read_base_config` returns it; None to read it here.
        on_progress: called with weights read so far and in all.
        options: for `from_pretrained`.

    Raises:
        EngineError: if it is not a causal language model, has no safetensors, lacks weights, or cannot be quantised.
        torch.OutOfMemoryError: if it does not fit.
    """
    if quantisation is not None:
        if sentence := lacking("bitsandbytes", f"{base} in 4 or 8 bits"):
            raise EngineError(sentence)
        options = {"quantization_config": quantisation, "device_map": {"": device or "cpu"}} | options
    try:
        with weight_progress(on_progress):
            loaded = AutoModelForCausalLM.from_pretrained(
                _located(base),
                config=config or read_base_config(_located(base), revision),
                revision=revision,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=dtype,
                output_loading_info=True,
                **options,
            )
        # With `output_loading_info` it returns a pair, which its annotation does not mention.
        model, loading_info = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise EngineError(
            f"The base model {base} cannot be loaded: {first_line(error)}; --base must be a causal language model "
            "with safetensors files."
        ) from None
    if missing := sorted(loading_info["missing_keys"]):
        # transformers would fill them with random numbers.
        raise EngineError(
            f"The base model {base} cannot be loaded: its files lack {len(missing)} of its weights, such as "
            f"{missing[0]}; fetch it again."
        )
    guard_cpu_4bit(model)
    return model


@dataclass(frozen=True)
class LoadPlan:
    """How a base model will be loaded.

    Attributes:
        config: its config.
        need: what it takes.
        dtype: of what is not quantised.
        bits: 4 or 8 for its Linears; None for none.
        device: where it goes.
        spread: whether it goes over all GPUs, since one is too small.
    """

    config: PreTrainedConfig
    need: MemoryNeed
    dtype: torch.dtype
    bits: Bits
    device: torch.device
    spread: bool = False


def plan(
    choice: BaseChoice,
    config: PreTrainedConfig,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    released: Mapping[torch.device, int] | None = None,
) -> LoadPlan:
    """Decide where and in which dtype a base will be loaded.

    Args:
        choice: the base.
        config: its config.
        device: None for CUDA or MPS where they are, else the CPU. Without an index, a base that is too large for one
            GPU is spread over all.
        dtype: None for what the device is good at; see `answer_dtype`.
        released: by device, bytes that are in use now and will be free by then.

    Raises:
        EngineError: if it is not a supported model, or does not fit; with the numbers.
    """
    place = chosen_device(device)
    whole = place.index is None or device is None
    stored = getattr(config, "quantization_config", None) or {}
    bits = 4 if stored.get("load_in_4bit") else 8 if stored.get("load_in_8bit") else choice.bits
    if bits is not None and (sentence := lacking("bitsandbytes", f"{choice.label} in {bits} bits")):
        raise EngineError(sentence)
    with measured(choice.label, config):
        if dtype is None:
            # transformers has read the word in the file to a dtype.
            stored_dtype = cast("torch.dtype | None", config.dtype or config.get_text_config().dtype)
            dtype = answer_dtype(place, stored_dtype)
        model = empty_model(config, dtype)
        check_family(model, choice.label)
        if bits is not None and not quantised_weights(model):
            raise EngineError(
                f"{choice.label} ({config.model_type}) has no Linears that bitsandbytes quantises; load it without "
                "quantisation."
            )
        need = estimate(model, dtype, bits)
    free, total = device_memory(place)
    if free is None:
        return LoadPlan(config, need, dtype, bits, place)
    room = free + bytes_on(place, released or {})
    if need.total <= room:
        return LoadPlan(config, need, dtype, bits, place)
    spread = all_gpus(released or {}) if place.type == "cuda" and whole else {}
    if len(spread) > 1 and need.total <= sum(spread.values()):
        return LoadPlan(config, need, dtype, bits, place, spread=True)
    raise EngineError(_too_large(choice.label, model, need, place, room, total))


def _too_large(
    label: str, model: PreTrainedModel, need: MemoryNeed, device: torch.device, room: int, total: int | None
) -> str:
    smaller = estimate(model, model.dtype, 4)
    hint = "choose a smaller one"
    if smaller.total < need.total and smaller.total <= room:
        hint = f"in 4 bits it needs {size(smaller.total)}"
    return (
        f"{label} needs {need_sentence(need)}; {device} has {size(room)} free"
        f"{f' of {size(total)}' if total else ''}: {hint}."
    )


def need_sentence(need: MemoryNeed) -> str:
    """What a base needs, in words, to follow "needs"."""
    return (
        f"about {size(need.total)} of memory: {size(need.weights)} for {count(need.parameters)} parameters in "
        f"{need.dtype}, and {size(need.answers)} for three answers of {need.tokens:,} tokens"
    )


def read_prompts(choice: BaseChoice, folder: Path) -> Prompts:
    """How a base reads conversations. A visitor's tokenizer and chat template are tried out first.

    Args:
        choice: the base.
        folder: its files.

    Raises:
        EngineError: if there is no tokenizer, or the tokenizer or its chat template never ends.
    """
    if not choice.operator:
        return read_untrusted(folder, choice.label)
    return Prompts(_tokenizer(str(folder), choice.label))


def read_weights(
    choice: BaseChoice, folder: Path, load_plan: LoadPlan, on_progress: OnProgress = lambda done, total: None
) -> PreTrainedModel:
    """Load the model where `load_plan` says. For the arguments see `read_base`.

    Raises:
        EngineError: if it cannot be loaded or does not fit.
    """
    quantisation = quantisation_config(load_plan.bits, load_plan.dtype)
    stored = getattr(load_plan.config, "quantization_config", None)
    if stored:
        quantisation = None
        if load_plan.bits == 8:
            stored["llm_int8_threshold"] = NO_THRESHOLD
    if load_plan.bits == 8:
        # bitsandbytes warns about float16 inputs at each product.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    placement: dict[str, Any] = {}
    if load_plan.spread:
        placement = {"device_map": "auto", "max_memory": all_gpus()}
    elif load_plan.device.type == "cuda" or load_plan.bits is not None:
        # Load directly to the device, without a copy in main memory.
        placement = {"device_map": {"": load_plan.device}}
    try:
        model = read_model(
            str(folder),
            None,
            load_plan.dtype,
            quantisation,
            load_plan.device,
            load_plan.config,
            on_progress,
            **placement,
        )
        if not placement:
            model.to(load_plan.device)  # type: ignore[arg-type]  # a wrapped method, which mypy takes for a function
    except EngineError as error:
        raise EngineError(str(error).replace(str(folder), choice.label)) from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise EngineError(out_of_memory_sentence(load_plan.device, 1)) from None
    return model


def bits_of(four_bit: bool, eight_bit: bool) -> Bits:
    """The number of bits, from the two flags.

    Raises:
        EngineError: if both are on.
    """
    if four_bit and eight_bit:
        raise EngineError("The base can be loaded in 4 bits or in 8 bits, not both: choose one.")
    return 4 if four_bit else 8 if eight_bit else None
