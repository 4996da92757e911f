# SPDX-License-Identifier: Apache-2.0
"""Reading a prompt and writing tokens: base, LoRA and SLIM in the engine, and in plain transformers and PEFT."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from peft import ArrowConfig, PeftConfig, PeftModel, XLoraConfig, create_arrow_model, get_peft_model
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ...baselines.mixlora import MixloraConfig
from ...inference import Engine, Row
from ...inference.forward import cache_argument
from ...method import SlimConfig
from ...outside.errors import with_type
from .compare import answer
from .machine import DeviceLimits, read_per_token
from .shapes import adapted, lora_config, random_engine, saved, sharing, slim_config
from .turns import Measured, Measures, Way, summary, take_turns


BASE, PEFT_BASE, PEFT_LORA = "base", "transformers: base", "PEFT: LoRA, unmerged"
MIXLORA = "PEFT: MixLoRA"
TOGETHER, RUNS = "all in one batch", "one after another"
EVERY_ROW = "the base in every row"
CLOSED = "slim, gate closed"
FACTOR_BYTES = 4


def time_decoding(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rank: int,
    experts: list[int],
    prompt: int,
    tokens: int,
    rounds: int,
    limits: DeviceLimits,
) -> tuple[list[Measured], dict[str, str]]:
    """Time all variants in turn.

    Args:
        base: random weights; see `random_base`.
        tokenizer: of at most as many tokens.
        rank: of each expert; each LoRA has this times the first number of experts.
        experts: numbers of LoRA experts, a SLIM adapter each.
        prompt: tokens that are read.
        tokens: that are written; at least 2.
        rounds: how often each variant has its turn.
        limits: what the device does at most.

    Returns:
        The measures, and by name why a variant was left out.
    """
    slims = {_name(number, experts[0]): slim_config(rank, number) for number in experts}
    lora = lora_config(rank * experts[0])
    # A context that never counts keeps every gate closed, as does one that is far from all training data.
    configs: dict[str, PeftConfig] = {"lora": lora, **slims, CLOSED: replace(slims["slim"], context_warmup=10**6)}
    engine = random_engine(base, tokenizer, "decode", configs)
    ids = torch.randint(5, base.config.vocab_size, (1, prompt), device=base.device)
    ways = _engine_ways(engine, tuple(ids[0].tolist()), tokens)
    models: dict[str, tuple[nn.Module, bool]] = {
        PEFT_BASE: (sharing(base), True),
        PEFT_LORA: (adapted(base, lora), True),
        "PEFT: SLIM": (adapted(base, slims["slim"]), True),
        MIXLORA: (adapted(base, MixloraConfig(r=rank, num_experts=experts[0], init_weights=False)), True),
    }
    left_out: dict[str, str] = {}
    makers: dict[str, Callable[[], tuple[nn.Module, bool]]] = {
        "PEFT: X-LoRA, no cache": lambda: (_xlora(base, lora_config(rank), experts[0]), False),
        "PEFT: Arrow": lambda: (_arrow(base, lora_config(rank), experts[0]), True),
    }
    for name, make in makers.items():
        try:
            model, cached = make()
            _written(model, ids, 2, cached)
            models[name] = model, cached
        except Exception as error:  # others' code may fail on this version or device
            left_out[name] = with_type(error)
    ways |= {name: _way(model, ids, tokens, cached) for name, (model, cached) in models.items()}
    read = read_per_token(base)
    sizes = {v.name: adapter_bytes(base, configs[v.name], v.bytes) for v in engine.variants[1:]}

    def facts(way: str, measure: str, seconds: float) -> dict[str, float]:
        if measure == "first token":
            # Two operations a weight and token; the head reads the last token alone.
            work = 2 * prompt * sum(linear.weight.numel() for linear in _linears(base))
            return {"share_of_matrix_rate": work / seconds / limits.matrix_rate} if way in (BASE, PEFT_BASE) else {}
        if measure != "token":
            return {}
        rates = {"tokens_per_second": (3 if way in (TOGETHER, EVERY_ROW) else 1) / seconds}
        if way in (MIXLORA, *makers):  # what these read is not known here
            return rates
        moved = read + sum(sizes[name] for name in _adapters_of(way, configs))
        return rates | {"bytes": moved, "share_of_copy_bandwidth": moved / seconds / limits.copy_bandwidth}

    return summary(take_turns(ways, rounds), (BASE, PEFT_LORA), facts), left_out


def _name(experts: int, first: int) -> str:
    return "slim" if experts == first else f"slim, {experts} experts"


def _adapters_of(way: str, configs: dict[str, PeftConfig]) -> list[str]:
    """The adapters whose weights a token of a way needs."""
    if way in (TOGETHER, RUNS):
        return ["lora", "slim"]
    if way in (PEFT_LORA, "PEFT: SLIM"):
        return ["lora" if way == PEFT_LORA else "slim"]
    return [way] if way in configs and way != CLOSED else []


def _linears(base: PreTrainedModel) -> list[nn.Linear]:
    """All but the head."""
    return [module for name, module in base.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]


def adapter_bytes(base: PreTrainedModel, config: PeftConfig, all_bytes: int) -> int:
    """Bytes of an adapter's weights that a token needs: all of a LoRA; of SLIM the router, and K of E experts.

    Args:
        base: all whose Linears but the head are adapted.
        config: of the adapter.
        all_bytes: bytes of all its weights.
    """
    if not isinstance(config, SlimConfig):
        return all_bytes
    wide = sum(linear.in_features + linear.out_features for linear in _linears(base))
    # The engine keeps them in float32.
    return all_bytes - FACTOR_BYTES * config.r * wide * (config.num_experts - config.top_k)


def _engine_ways(engine: Engine, ids: tuple[int, ...], tokens: int) -> dict[str, Way]:
    def way(names: list[str], batched: bool = True) -> Way:
        rows = [Row(name, (), text=ids) for name in names]

        def turn() -> Measures:
            measures = answer(engine, rows, tokens, batched)
            # One after another there is no first token of all.
            return measures if batched else {"answer": measures["answer"]}

        return turn

    names = [variant.name for variant in engine.variants]
    ways = {name: way([name]) for name in names}
    return ways | {
        EVERY_ROW: way(names[:1] * 3),
        TOGETHER: way(names[:3]),
        RUNS: way(names[:3], batched=False),
    }


def _way(model: nn.Module, ids: Tensor, tokens: int, cached: bool) -> Way:
    return lambda: _written(model, ids, tokens, cached)


@torch.inference_mode()
def _written(model: nn.Module, ids: Tensor, tokens: int, cached: bool) -> Measures:
    """Greedy decoding, as simple as it can be; without a cache every token reads the whole text."""
    start = time.perf_counter()
    text, read, first = ids, ids, 0.0
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    cache = {cache_argument(base): DynamicCache()} if cached else {}
    for number in range(tokens):
        logits = model(input_ids=read, use_cache=cached, logits_to_keep=1, **cache).logits
        # Reading the token waits for the device.
        token = int(logits[0, -1].argmax())
        if not number:
            first = time.perf_counter() - start
        text = torch.cat([text, torch.tensor([[token]], device=ids.device)], 1)
        read = text[:, -1:] if cached else text
    seconds = time.perf_counter() - start
    return {"first token": first, "token": (seconds - first) / (tokens - 1), "answer": seconds}


def _xlora(base: PreTrainedModel, expert: PeftConfig, experts: int) -> nn.Module:
    """PEFT's X-LoRA over plain LoRAs; it takes no cache."""
    with saved(base, {"expert": expert}) as folders, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sharing(base)
        model.config.use_cache = False
        # All are the same adapter, which takes the same time as different ones.
        paths = {str(number): str(folders["expert"]) for number in range(experts)}
        config = XLoraConfig(task_type="CAUSAL_LM", hidden_size=base.config.hidden_size, adapters=paths)
        return get_peft_model(model, config).eval()


def _arrow(base: PreTrainedModel, expert: PeftConfig, experts: int) -> nn.Module:
    """PEFT's Arrow router over the same LoRAs, two of which each token gets."""
    with saved(base, {"expert": expert}) as folders:
        paths = [str(folders["expert"])] * experts
        return create_arrow_model(sharing(base), paths, ArrowConfig(top_k=2)).eval()
