# SPDX-License-Identifier: Apache-2.0
"""Bases of several families, trained on the demo's world, and what LoRA and SLIM do to each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..base.formatting import count
from ..demo.pretrain import Pretraining, TrainingProgress
from ..demo.recipe import PHASES, Training
from ..demo.report import Table
from ..evaluation.report.markup import interval
from ..evaluation.statistics import difference, mean_score, ratio
from ..evaluation.summary import BASE
from .collect import Collected, values_of
from .runs import PaperError
from .scales import DemoScale
from .tables import MISSING, NONE, points
from .work import write_json


VERSION = 1
# On one core of a small cloud machine.
SECONDS_A_STEP = 0.2


@dataclass(frozen=True)
class BaseShape:
    """The shape of every family's base, and how long it is trained.

    Attributes:
        steps: optimiser steps, with the demo's mixture of questions.
        batch: conversations of a step.
        width, layers, heads, inner: of the model.
        context: most tokens of a conversation.
    """

    steps: int = 2400
    batch: int = 64
    width: int = 128
    layers: int = 4
    heads: int = 4
    inner: int = 384
    context: int = 512

    @property
    def training(self) -> Training:
        """The demo's training of single questions, shorter."""
        share = self.steps / sum(phase.steps for phase in PHASES)
        phases = [
            replace(phase, steps=max(1, round(phase.steps * share)), fall=round(phase.fall * share))
            for phase in PHASES
        ]
        return Training(tuple(phases), batch=self.batch, warmup=max(1, round(60 * share)))


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        title: for people.
        model_type: of transformers.
        targets: the Linears of its MLPs that adapters adapt.
        extra_fields: fields of its configuration that the others do not have.
    """

    title: str
    model_type: str
    targets: tuple[str, ...] = ("gate_proj", "up_proj")
    extra_fields: Callable[[BaseShape], dict[str, Any]] = lambda shape: {}

    def build(self, shape: BaseShape, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """An untrained base with the tokenizer's tokens."""
        fields = {
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "hidden_size": shape.width,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "max_position_embeddings": shape.context,
            "tie_word_embeddings": True,
        }
        config = AutoConfig.for_model(self.model_type, **(fields | self.extra_fields(shape)))
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        return model


def _gated(shape: BaseShape) -> dict[str, Any]:
    head = shape.width // shape.heads
    return {"intermediate_size": shape.inner, "num_key_value_heads": shape.heads, "head_dim": head}


def _gemma(shape: BaseShape) -> dict[str, Any]:
    return _gated(shape) | {
        "sliding_window": shape.context // 2,
        "query_pre_attn_scalar": shape.width // shape.heads,
    }


def _gpt2(shape: BaseShape) -> dict[str, Any]:
    # Its own dropout is not the other families'.
    return {"n_inner": shape.inner, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


FAMILIES: Mapping[str, Family] = {
    "llama": Family("Llama", "llama", extra_fields=_gated),
    "qwen3": Family("Qwen3", "qwen3", extra_fields=_gated),
    "gemma3": Family("Gemma 3", "gemma3_text", extra_fields=_gemma),
    "gpt2": Family("GPT-2", "gpt2", ("c_fc",), _gpt2),
}


def chosen_families(names: Sequence[str]) -> list[str]:
    """The named families, or all.

    Raises:
        PaperError: if there is no such family.
    """
    for name in names:
        if name not in FAMILIES:
            raise PaperError(f"bases has no {name!r}; there are {', '.join(FAMILIES)}.")
    return [name for name in FAMILIES if not names or name in names]


def base_folder(work: Path, name: str, shape: BaseShape) -> Path:
    """Where a family's base is, or will be."""
    inputs = [VERSION, name, asdict(shape), asdict(shape.training)]
    return work / "bases" / f"{name}-{sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:10]}"


def is_trained(folder: Path) -> bool:
    """Whether the base is complete."""
    return (folder / "trained.json").is_file()


def train_base(folder: Path, name: str, shape: BaseShape, demo: Path, say: Callable[[str], None]) -> None:
    """Train a family's base, or continue where an earlier call was interrupted.

    Args:
        folder: of `base_folder`.
        name: of the family.
        shape: of the base.
        demo: folder of the demo's base, whose tokenizer and chat template it gets.
        say: gets a sentence now and then.
    """
    if is_trained(folder):
        return
    tokenizer = AutoTokenizer.from_pretrained(demo)
    torch.manual_seed(0)
    model = FAMILIES[name].build(shape, tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = folder.with_suffix(".safetensors")
    pretraining = Pretraining(tokenizer, model, shape.training, state, device)
    total = shape.training.steps
    say(f"{FAMILIES[name].title}: training a base, from step {pretraining.step:,} of {total:,}")

    def progress(done: TrainingProgress) -> None:
        if done.step % 200 == 0:
            say(f"{FAMILIES[name].title}: step {done.step:,} of {total:,}, loss {done.loss:.3f}")

    trained = pretraining.run(progress).to("cpu")  # type: ignore[arg-type]  # a wrapped method, not a function
    trained.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Written last: its presence means that everything else is there.
    write_json(folder / "trained.json", {"family": name, "seconds": pretraining.seconds} | asdict(shape))
    state.unlink(missing_ok=True)


def scale_of(scale: DemoScale, name: str, folder: Path) -> DemoScale:
    """The demo's scale on a family's base."""
    return replace(scale, folder=folder, plan=replace(scale.plan, targets=FAMILIES[name].targets))


def sentence_of(shape: BaseShape) -> str:
    """What the bases are."""
    return (
        f"Each base has {shape.layers} blocks of width {shape.width} and was trained on the demo's world in "
        f"{shape.training.steps:,} steps of {shape.batch} conversations, far shorter than the demo's own. A task that "
        "it has not learned cannot show forgetting."
    )


def bases_table(by_family: Mapping[str, Collected | None]) -> Table:
    """A row for each family and method.

    Args:
        by_family: what is finished; None where there is no base yet.
    """
    table = Table(
        "Other bases, trained on the demo's world: mean over the tasks in % with 95 % intervals",
        ("base", "parameters", "method", "seeds", "downstream", "general", "drop", "retention"),
    )
    for name, collected in by_family.items():
        title = FAMILIES[name].title
        if collected is None or not collected.parts:
            table.add(title, MISSING, "", "", "", "", "", "")
            continue
        (part,) = collected.parts
        (group,) = part.evaluation.groups
        base = {kind: values_of(part, group, kind, [BASE]) for kind in group.kinds}
        size = count(part.evaluation.base.parameters)
        table.add(title, size, "base", NONE, *_means(base), NONE, NONE)
        for contender in collected.experiment.contenders:
            columns = part.columns_of(contender)
            if not columns:
                table.add(title, size, contender.title, "0", MISSING, MISSING, "", "")
                continue
            marks = {kind: values_of(part, group, kind, columns) for kind in group.kinds}
            drop = difference(base["general"], marks["general"], list(marks["general"]))
            retention = ratio(marks["general"], base["general"], list(base["general"]))
            table.add(
                title,
                size,
                contender.title,
                str(len(columns)),
                *_means(marks),
                points(drop),
                NONE if retention is None else interval(retention),
            )
    return table


def _means(values: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    return [interval(mean_score(values[kind], list(values[kind]))) for kind in ("downstream", "general")]


def spent(work: Path) -> float | None:
    """Mean seconds per step of the bases that were trained in this folder."""
    trainings = [json.loads(path.read_text(encoding="utf-8")) for path in (work / "bases").glob("*/trained.json")]
    return fmean(training["seconds"] / max(1, training["steps"]) for training in trainings) if trainings else None
