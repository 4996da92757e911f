# SPDX-License-Identifier: Apache-2.0
"""Speed of a comparison: base, LoRA and SLIM in one batch, compared with the base alone and with three separate runs.

The ways take turns within one run, so that a drift of the machine's speed meets them all alike. What counts is the
ratio within a round; the report gives the median over the rounds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from ..base.prompts import Prompts
from ..inference import Engine, Message, Row, Sampling
from ..method import SlimConfig


@dataclass(frozen=True)
class WayTiming:
    """Timing of one way of answering.

    Attributes:
        name: the way.
        milliseconds: median for one token of every answer.
        to_base: median of the ratio to the base alone.
        to_runs: median of the ratio to three runs one after another.
    """

    name: str
    milliseconds: float
    to_base: float
    to_runs: float


def random_engine(
    tokenizer: PreTrainedTokenizerBase, width: int, layers: int, config: SlimConfig, device: str = "cpu"
) -> Engine:
    """A Llama with random weights, a LoRA of rank E r and a SLIM adapter on all its Linears."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width * 8 // 3 // 8 * 8,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 32),
            num_key_value_heads=max(1, width // 32),
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        )
    ).eval()
    rank = config.num_experts * config.r
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", init_lora_weights=False)
    with tempfile.TemporaryDirectory() as folder:
        for name, adapter in (("lora", lora), ("slim", config)):
            model = get_peft_model(base, adapter)
            # One training forward starts the clusters.
            model.train()(torch.randint(5, len(tokenizer), (8, 32)))
            model.eval().save_pretrained(str(Path(folder) / name))
            model.unload()
        engine = Engine(base.to(device), Prompts(tokenizer), f"random Llama, width {width}, {layers} blocks")
        for name in ("lora", "slim"):
            engine.attach(Path(folder) / name, name=name)
    return engine


def experts_used(engine: Engine, prompt: str, tokens: int) -> dict[str, float]:
    """Average number of LoRA experts per token and Linear, by adapter. On a CPU only these cost time.

    Args:
        engine: with at least one adapter.
        prompt: the question.
        tokens: length of each answer.
    """
    names = [variant.name for variant in engine.variants[1:]]
    rows = [Row(name, (Message("user", prompt),), routing=True) for name in names]
    *_, step = engine.answer(rows, Sampling(max_new_tokens=tokens))
    return {
        names[index]: (routing.weights[..., : routing.num_experts] > 0).sum(-1).float().mean().item()
        for index, routing in step.routing.items()
    }


def time_ways(engine: Engine, prompt: str, tokens: int, rounds: int) -> list[WayTiming]:
    """Time all ways in turn. Each answer has exactly `tokens` tokens.

    Args:
        engine: with at least one adapter.
        prompt: the question.
        tokens: length of each answer.
        rounds: how often each way has its turn.
    """
    names = [variant.name for variant in engine.variants]
    sampling = Sampling(max_new_tokens=tokens)

    def run(wanted: list[str], routing: bool = False, batched: bool = True) -> Callable[[], None]:
        def answer() -> None:
            rows = [Row(name, (Message("user", prompt),), routing) for name in wanted]
            *_, step = engine.answer(rows, sampling, batched=batched)
            if any(row.tokens != tokens for row in step.rows):
                raise ValueError(f"The answers did not get {tokens} tokens: {[row.error for row in step.rows]}.")

        return answer

    ways = {"base alone": run(names[:1])}
    ways |= {f"{name} alone": run([name]) for name in names[1:]}
    ways |= {
        "the base in every row": run(names[:1] * len(names)),
        "all in one batch": run(names),
        "all in one batch, routing recorded": run(names, routing=True),
        "one after another": run(names, batched=False),
    }
    ends, engine.end_tokens = engine.end_tokens, frozenset()
    try:
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for answer in ways.values():
            answer()
        for _ in range(rounds):
            for name, answer in ways.items():
                start = time.perf_counter()
                answer()
                seconds[name].append(time.perf_counter() - start)
    finally:
        engine.end_tokens = ends

    def ratio(name: str, to: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[name], seconds[to], strict=True))

    return [
        WayTiming(
            name,
            1e3 * statistics.median(times) / tokens,
            ratio(name, "base alone"),
            ratio(name, "one after another"),
        )
        for name, times in seconds.items()
    ]
