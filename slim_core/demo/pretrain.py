# SPDX-License-Identifier: Apache-2.0
"""The training of the demo's base model, a small Llama, on the world's general examples."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Generic, NamedTuple, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from .conversations import Conversation, conversations
from .example import Example
from .muon import Muon
from .recipe import Phase, Recipe, Training


DRAW = 64  # number of batches drawn and sorted by length at a time
SAVE_SECONDS = 120.0
M = TypeVar("M", bound=PreTrainedModel)


class Encoded(NamedTuple):
    """Token ids of a conversation, and the spans of its answers including the tokens that close them."""

    ids: list[int]
    answers: list[tuple[int, int]]


class TrainingProgress(NamedTuple):
    """Training progress: steps done, tokens read and seconds since it was started, loss in nats."""

    step: int
    tokens: int
    seconds: float
    loss: float


def encode(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], context: int) -> list[Encoded]:
    """The conversations as the chat template writes them.

    Every message ends in a separate token: a prompt is always a prefix of its whole text, and a conversation is the
    beginning of the text followed by its turns.

    Args:
        tokenizer: with the chat template.
        conversations: what is asked and answered, turn by turn.
        context: most tokens of a conversation; turns beyond it are left out.
    """
    turns = iter(_encode_turns(tokenizer, [turn for conversation in conversations for turn in conversation]))
    encoded = []
    for conversation in conversations:
        ids, answers = [tokenizer.bos_token_id], []
        for prompt, whole in [next(turns) for _ in conversation]:
            if len(ids) + len(whole) > context:
                break
            answers.append((len(ids) + len(prompt), len(ids) + len(whole)))
            ids += whole
        encoded.append(Encoded(ids, answers))
    return encoded


def _encode_turns(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Example]
) -> Iterator[tuple[list[int], list[int]]]:
    """The ids of each turn's prompt, and of the whole turn, without the token that begins a text."""
    chats = [[{"role": "user", "content": e.prompt}, {"role": "assistant", "content": e.answer}] for e in turns]
    prompts = tokenizer.apply_chat_template([chat[:1] for chat in chats], tokenize=False, add_generation_prompt=True)
    texts = tokenizer.apply_chat_template(chats, tokenize=False)
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ((prompt[1:], whole[1:]) for prompt, whole in zip(prompt_ids, ids, strict=True))


def batches(
    tokenizer: PreTrainedTokenizerBase, training: Training, context: int, start: int = 0
) -> Iterator[list[Encoded]]:
    """The training batches from step `start` on. Conversations of similar length are batched together."""
    first_draw = 0
    for phase in training.phases:
        yield from _phase_batches(tokenizer, training, context, phase, first_draw, start)
        first_draw += math.ceil(phase.steps / DRAW)
        start = max(0, start - phase.steps)


def _phase_batches(
    tokenizer: PreTrainedTokenizerBase, training: Training, context: int, phase: Phase, first_draw: int, start: int
) -> Iterator[list[Encoded]]:
    for step in range(start - start % DRAW, phase.steps, DRAW):
        rng = Random(f"batches {training.seed} {first_draw + step // DRAW}")
        drawn = conversations(rng.getrandbits(32), DRAW * training.batch, phase)
        encoded = sorted(encode(tokenizer, drawn, context), key=lambda e: len(e.ids))
        chunks = [encoded[i : i + training.batch] for i in range(0, len(encoded), training.batch)]
        rng.shuffle(chunks)
        yield from chunks[max(0, start - step) : phase.steps - step]


def collate(batch: Sequence[Encoded], pad: int, prompt_share: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """(B, T) int64 ids, padded on the right, and (B, T - 1) bool: whether the next token is to be predicted."""
    length = max(len(e.ids) for e in batch)
    ids = torch.tensor([e.ids + [pad] * (length - len(e.ids)) for e in batch])
    predicted = torch.rand(len(batch), length - 1, generator=rng) < prompt_share
    for row, (whole, answers) in zip(predicted, batch, strict=True):
        for begin, end in answers:
            row[begin - 1 : end - 1] = True
        row[len(whole) - 1 :] = False
    return ids, predicted


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
    """Whether the hardware supports bfloat16, which is about twice as fast as float32; emulation is slow."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def _muon(parameters: list[nn.Parameter], training: Training, device: torch.device) -> torch.optim.Optimizer:
    rate, decay = training.rate, training.weight_decay
    if has_bf16(device):
        return torch.optim.Muon(parameters, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return Muon(parameters, lr=rate, weight_decay=decay)


class Pretraining(Generic[M]):
    """The model, its optimisers and its progress. Saved often, so that training can be resumed.

    Args:
        tokenizer: of the world.
        model: what is trained, with its weights at the beginning.
        training: how.
        file: where it is saved. If it has the state of the same training from the same weights, that is resumed.
        device: where it is trained.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: M,
        training: Training,
        file: Path,
        device: torch.device,
    ) -> None:
        self.tokenizer, self.training, self.device = tokenizer, training, device
        self.model = model.to(device)  # type: ignore[arg-type]  # a wrapped method, which mypy takes for a function
        blocks = [p for p in _blocks(self.model).parameters() if p.ndim == 2]
        chosen = set(map(id, blocks))
        rest = [p for p in self.model.parameters() if id(p) not in chosen]
        # Muon needs about half of AdamW's steps here.
        self.optimisers: list[torch.optim.Optimizer] = [
            _muon(blocks, training, device),
            torch.optim.AdamW(rest, lr=training.embedding_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(o, self._factor) for o in self.optimisers]
        self.step = 0
        self.seconds = 0.0  # of training, over all calls
        self._file = file
        self._identity = json.dumps(asdict(training) | {"weights": _digest(model)})
        self._load()

    def _factor(self, step: int) -> float:
        """The factor of the learning rates: rising in the warm-up, then constant, then falling at the end of a
        phase.
        """
        begin = end = 0
        for phase in self.training.phases:
            end += phase.steps
            if step < end:
                down = (end - step) / phase.fall if phase.fall else 1.0
                return min((step + 1 - begin) / self.training.warmup, down, 1.0)
            if phase.fall:
                begin = end
        return 0.0

    def _phase(self) -> Phase:
        """The phase of the next step."""
        ends = accumulate(phase.steps for phase in self.training.phases)
        return next(phase for phase, end in zip(self.training.phases, ends, strict=True) if self.step < end)

    def run(self, report: Callable[[TrainingProgress], None]) -> M:
        """Train to the end.

        Args:
            report: called after every step.
        """
        begin = saved = time.monotonic()
        before, tokens = self.seconds, 0
        self.model.train()
        for batch in batches(self.tokenizer, self.training, self.model.config.max_position_embeddings, self.step):
            loss = self._train(batch)
            tokens += sum(len(e.ids) for e in batch)
            seconds = time.monotonic() - begin
            self.seconds = before + seconds
            report(TrainingProgress(self.step, tokens, seconds, loss))
            if time.monotonic() - saved > SAVE_SECONDS or self.step == self.training.steps:
                self._save()
                saved = time.monotonic()
        return self.model.eval()

    def _train(self, batch: Sequence[Encoded]) -> float:
        # Seeded by the step, so that a resumed training draws the same as an uninterrupted one.
        rng = torch.Generator().manual_seed(self.training.seed * 10**9 + self.step)
        ids, predicted = collate(batch, self.tokenizer.pad_token_id, self._phase().prompt_share, rng)
        ids, predicted = ids.to(self.device), predicted.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=has_bf16(self.device)):
            hidden = self.model.base_model(input_ids=ids).last_hidden_state[:, :-1]
            # The output head is a third of the work, so it runs only where a prediction counts.
            logits = self.model.get_output_embeddings()(hidden[predicted])
        loss = nn.functional.cross_entropy(logits.float(), ids[:, 1:][predicted])
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
        save_file(tensors, partial, {"training": self._identity, "step": str(self.step), "seconds": str(self.seconds)})
        partial.replace(self._file)

    def _load(self) -> None:
        if not self._file.is_file():
            return
        with safe_open(self._file, "pt", device=str(self.device)) as file:
            metadata = file.metadata()
            if metadata["training"] != self._identity:
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


def _blocks(model: PreTrainedModel) -> nn.Module:
    """The decoder layers; GPT-2 has a name of its own for them."""
    decoder = model.base_model
    return decoder.get_submodule("layers" if hasattr(decoder, "layers") else "h")


def _digest(model: nn.Module) -> str:
    """A hash of the weights."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
