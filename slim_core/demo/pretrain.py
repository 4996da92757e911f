# SPDX-License-Identifier: Apache-2.0
"""The demo's base model: a small Llama, trained from nothing on the world's general examples."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from .example import Example
from .world import general_examples


DRAW = 64  # batches drawn, and sorted by length, at a time
SAVE_SECONDS = 120.0


@dataclass(frozen=True)
class Phase:
    """A part of the training with a mixture of its own.

    Attributes:
        steps: optimiser steps.
        weights: shares of the tasks in the examples.
        fall: how many of the steps, at the end, let the rates fall to nothing. Then the next phase warms up again.
    """

    steps: int
    weights: dict[str, int]
    fall: int = 0


# Choosing and calculating take the most examples to learn. Options with other labels and other words around them come
# when the base has begun to choose, answers by a letter alone when it chooses well.
PHASES = (
    Phase(
        1400,
        {"sums": 22, "facts": 15, "spelled_choices": 34, "read_options": 6, "yes_no": 10, "talk": 7, "stories": 6},
    ),
    Phase(
        4400,
        {
            "sums": 24,
            "facts": 8,
            "spelled_choices": 24,
            "styled_choices": 6,
            "framed_choices": 12,
            "read_options": 3,
            "yes_no": 12,
            "talk": 6,
            "stories": 5,
        },
        fall=2900,
    ),
    Phase(
        2400,
        {
            "sums": 15,
            "facts": 7,
            "choices": 15,
            "framed_choices": 3,
            "scene_choices": 5,
            "told_choices": 28,
            "told_claims": 4,
            "told_questions": 13,
            "yes_no": 6,
            "talk": 3,
            "stories": 1,
        },
        fall=2400,
    ),
)


@dataclass(frozen=True)
class Recipe:
    """How the base is built and trained.

    Attributes:
        width, layers, heads, inner: of the Llama.
        context: most tokens of a text.
        phases: what is trained, one after the other.
        batch: examples of a step.
        rate: peak rate of Muon, for the matrices of the blocks.
        embedding_rate: peak rate of AdamW, for embeddings and norms.
        weight_decay: Muon's.
        warmup: steps until the peak, at the beginning and wherever the rates have fallen.
        prompt_share: share of the questions' tokens, drawn at random, that are predicted too. Questions teach which
            words go together; each of their tokens would cost as much as one of an answer, and there are more.
        seed: of the first weights and the data.
    """

    width: int = 192
    layers: int = 4
    heads: int = 6
    inner: int = 512
    context: int = 512
    phases: tuple[Phase, ...] = PHASES
    batch: int = 128
    rate: float = 3e-3
    embedding_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup: int = 60
    prompt_share: float = 0.2
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return sum(phase.steps for phase in self.phases)


class Encoded(NamedTuple):
    """Token ids of a conversation of one question and one answer, and how many of them are before the answer."""

    ids: list[int]
    prompt: int


class Progress(NamedTuple):
    """Where the training is: steps done, tokens read since it was started, seconds since, loss in nats."""

    step: int
    tokens: int
    seconds: float
    loss: float


def encode(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[Encoded]:
    """The examples as the chat template writes them.

    A prompt is always a prefix of its whole text: every message ends in a token of its own.
    """
    chats = [[{"role": "user", "content": e.prompt}, {"role": "assistant", "content": e.answer}] for e in examples]
    prompts = tokenizer.apply_chat_template([chat[:1] for chat in chats], tokenize=False, add_generation_prompt=True)
    texts = tokenizer.apply_chat_template(chats, tokenize=False)
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [Encoded(whole, len(prompt)) for whole, prompt in zip(ids, prompt_ids, strict=True)]


def batches(tokenizer: PreTrainedTokenizerBase, recipe: Recipe, start: int = 0) -> Iterator[list[Encoded]]:
    """The training batches from step `start` on. Examples of like length are together."""
    first_draw = 0
    for phase in recipe.phases:
        yield from _phase_batches(tokenizer, recipe, phase, first_draw, start)
        first_draw += math.ceil(phase.steps / DRAW)
        start = max(0, start - phase.steps)


def _phase_batches(
    tokenizer: PreTrainedTokenizerBase, recipe: Recipe, phase: Phase, first_draw: int, start: int
) -> Iterator[list[Encoded]]:
    for step in range(start - start % DRAW, phase.steps, DRAW):
        rng = Random(f"batches {recipe.seed} {first_draw + step // DRAW}")
        examples = general_examples("train", rng.getrandbits(32), DRAW * recipe.batch, weights=phase.weights)
        encoded = sorted(encode(tokenizer, examples), key=lambda e: len(e.ids))
        drawn = [encoded[i : i + recipe.batch] for i in range(0, len(encoded), recipe.batch)]
        rng.shuffle(drawn)
        yield from drawn[max(0, start - step) : phase.steps - step]


def collate(batch: Sequence[Encoded], pad: int, prompt_share: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """(B, T) int64 ids, padded on the right, and (B, T - 1) bool: whether the next token is to be predicted."""
    length = max(len(e.ids) for e in batch)
    ids = torch.tensor([e.ids + [pad] * (length - len(e.ids)) for e in batch])
    wanted = torch.rand(len(batch), length - 1, generator=rng) < prompt_share
    for row, (whole, prompt) in zip(wanted, batch, strict=True):
        row[prompt - 1 : len(whole) - 1] = True
        row[len(whole) - 1 :] = False
    return ids, wanted


def new_base(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> LlamaForCausalLM:
    """The untrained base. Embeddings and output head share their weights."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.width,
            intermediate_size=recipe.inner,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16, about twice as fast as float32. Elsewhere it is emulated: slow."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


class Pretraining:
    """The model, its optimisers and how far they are. Saved often, so that it can go on.

    Args:
        tokenizer: of the world.
        recipe: how it is trained.
        folder: where it is saved. If it holds the same recipe's state, that goes on.
        device: where it is trained.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, folder: Path, device: torch.device) -> None:
        self.tokenizer, self.recipe, self.device = tokenizer, recipe, device
        self.model = new_base(tokenizer, recipe).to(device)
        blocks = [p for p in self.model.model.layers.parameters() if p.ndim == 2]
        chosen = set(map(id, blocks))
        rest = [p for p in self.model.parameters() if id(p) not in chosen]
        # Muon needs about half of AdamW's steps here.
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(blocks, lr=recipe.rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=recipe.embedding_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(o, self._factor) for o in self.optimisers]
        self.step = 0
        self.seconds = 0.0  # of training, over all calls
        self._file = folder / "pretraining.safetensors"
        self._load()

    def _factor(self, step: int) -> float:
        """The rates' factor: up in a warm-up, level, and down where a phase falls."""
        begin = end = 0
        for phase in self.recipe.phases:
            end += phase.steps
            if step < end:
                down = (end - step) / phase.fall if phase.fall else 1.0
                return min((step + 1 - begin) / self.recipe.warmup, down, 1.0)
            if phase.fall:
                begin = end
        return 0.0

    def run(self, report: Callable[[Progress], None]) -> LlamaForCausalLM:
        """Train to the end.

        Args:
            report: called after every step.
        """
        begin = saved = time.monotonic()
        before, tokens = self.seconds, 0
        self.model.train()
        for batch in batches(self.tokenizer, self.recipe, self.step):
            loss = self._train(batch)
            tokens += sum(len(e.ids) for e in batch)
            seconds = time.monotonic() - begin
            self.seconds = before + seconds
            report(Progress(self.step, tokens, seconds, loss))
            if time.monotonic() - saved > SAVE_SECONDS or self.step == self.recipe.steps:
                self._save()
                saved = time.monotonic()
        return self.model.eval()

    def _train(self, batch: Sequence[Encoded]) -> float:
        # Seeded by the step, so that a training that goes on draws what a straight one does.
        rng = torch.Generator().manual_seed(self.recipe.seed * 10**9 + self.step)
        ids, wanted = collate(batch, self.tokenizer.pad_token_id, self.recipe.prompt_share, rng)
        ids, wanted = ids.to(self.device), wanted.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=has_bf16(self.device)):
            hidden = self.model.model(input_ids=ids).last_hidden_state[:, :-1]
            # The output head is a third of the work: only where a prediction counts.
            logits = self.model.lm_head(hidden[wanted])
        loss = nn.functional.cross_entropy(logits.float(), ids[:, 1:][wanted])
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser, schedule in zip(self.optimisers, self.schedules, strict=True):
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
        self.step += 1
        return loss.item()

    def _save(self) -> None:
        tensors = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        for i, optimiser in enumerate(self.optimisers):
            for j, state in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{i}.{j}.{name}": tensor for name, tensor in state.items()}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(".partial")
        save_file(
            tensors, partial, {"recipe": _plain(self.recipe), "step": str(self.step), "seconds": str(self.seconds)}
        )
        partial.replace(self._file)

    def _load(self) -> None:
        if not self._file.is_file():
            return
        with safe_open(self._file, "pt", device=str(self.device)) as file:
            metadata = file.metadata()
            if metadata["recipe"] != _plain(self.recipe):
                return
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        for i, (optimiser, schedule) in enumerate(zip(self.optimisers, self.schedules, strict=True)):
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                kind, *place = name.split(".", 3)
                if kind == "optimiser" and int(place[0]) == i:
                    state.setdefault(int(place[1]), {})[place[2]] = tensor
            optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
            # The rates follow from the step.
            schedule.last_epoch = self.step
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * self._factor(self.step)


def _plain(recipe: Recipe) -> str:
    """The recipe as JSON."""
    return json.dumps(asdict(recipe))
