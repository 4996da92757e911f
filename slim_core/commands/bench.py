# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core bench`: how fast it is, and what it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..outside.errors import printable
from .bench_view import Report
from .console import refuse


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..evaluation.bench.machine import DeviceLimits
    from ..inference import Engine


app = typer.Typer(no_args_is_help=True, help="Time SLIM, the base and PEFT's LoRA in turn, in one run.")

Json = Annotated[Path | None, typer.Option("--json", help="New file for all numbers, written after each case.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda. (default: a GPU if there is one)")]
Rounds = Annotated[int, typer.Option(min=1, help="Measured rounds, after one for warming up; medians are reported.")]
Shape = Annotated[
    Literal["tiny", "demo", "160M", "1B", "3B", "8B"], typer.Option(help="Shape of the Llama with random weights.")
]
Rank = Annotated[int, typer.Option(min=1, help="Rank of each expert.")]
Experts = Annotated[int, typer.Option(min=2, help="Number of LoRA experts; the LoRA has rank × this.")]
Batch = Annotated[int, typer.Option(min=1, help="Examples of a training step.")]
Methods = Annotated[list[str], typer.Option("--method", help="Trained beside a LoRA; repeat for several.")]
Length = Annotated[int, typer.Option(min=2, help="Tokens of an example.")]
Base = Annotated[str | None, typer.Option(help="Base model: folder or Hub id. (default: random weights)")]
Lora = Annotated[str | None, typer.Option(help="LoRA for this base.")]
Slim = Annotated[str | None, typer.Option(help="SLIM adapter for this base.")]
Clients = Annotated[list[int], typer.Option(min=1, help="Clients at once; repeat for several.")]
# A tokenizer of all words would take longer to make than some benches.
TOKENIZED = "What is the capital of Peru? What is 7 + 8?"
CLIENTS = [1, 2, 4, 8, 16, 32, 64]


def _device(device: str | None) -> str:
    import torch

    from ..evaluation.bench.machine import best_device

    available = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    if device is not None and device not in available:
        raise typer.BadParameter(f"{device!r} is not available; choose {' or '.join(available)}.")
    return device or best_device()


def _trained_beside_lora(methods: list[str]) -> list[str]:
    """The methods of `--method`; those that change a finished LoRA have its trainings."""
    from ..baselines import METHODS

    known = [name for name, method in METHODS.items() if method.finish is None and name != "lora"]
    for method in methods:
        if method not in known:
            refuse(f"--method must be one of {', '.join(known)}, not {method}.")
    return list(dict.fromkeys(methods))


@app.command()
def layer(
    width: Annotated[list[int], typer.Option(help="Sizes of the Linear; repeat for several.")] = [1024, 4096],  # noqa: B006
    tokens: Annotated[list[int], typer.Option(help="Tokens per forward; repeat for several.")] = [1, 16, 512],  # noqa: B006
    merge: Annotated[Literal["fast", "none"], typer.Option(help="Dynamic merging.")] = "fast",
    rounds: Rounds = 7,
    device: Device = None,
    json: Json = None,
) -> None:
    """One adapted Linear: base, PEFT LoRA of equal total rank, SLIM, and a loop over experts."""
    from ..evaluation.bench.layer import settings, time_setting
    from ..method import SlimConfig

    device = _device(device)
    # Yielding is switched off, so that LoRA experts handle every token of the random input; it is only an elementwise
    # step.
    config = SlimConfig(merge=merge, yield_strength=0.0)
    report = Report("layer", device, json, merge=merge, rounds=rounds)
    report.say(
        f"{config.num_experts} experts of rank {config.r}, {config.num_identity} identity, top-{config.top_k}, "
        f"merge={merge}, p={config.mask_rate}; LoRA of rank {config.num_experts * config.r}"
    )
    for setting in settings(device, width, tokens):
        pass_name = "forward + backward" if setting.backward else "forward"
        dtype = str(setting.dtype).removeprefix("torch.")
        title = f"{dtype}, C = {setting.width}, {setting.tokens} tokens, {pass_name}"
        report.add(title, time_setting(setting, config, rounds))


def _random(shape: str, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from ..demo.chat import train_tokenizer
    from ..evaluation.bench.machine import dtype_of
    from ..evaluation.bench.shapes import random_base

    tokenizer = train_tokenizer([TOKENIZED])
    return random_base(shape, device, dtype_of(device), len(tokenizer)), tokenizer


@app.command()
def decode(
    shape: Shape = "160M",
    prompt: Annotated[int, typer.Option(min=1, help="Tokens that are read.")] = 512,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens that are written.")] = 32,
    rank: Rank = 16,
    experts: Annotated[
        list[int], typer.Option(min=2, help="Numbers of LoRA experts; repeat for several. The LoRA follows the first.")
    ] = [8],  # noqa: B006
    rounds: Rounds = 5,
    device: Device = None,
    json: Json = None,
) -> None:
    """Reading and writing: base, LoRA and SLIM, alone and in one batch; PEFT's LoRA, X-LoRA and Arrow."""
    from ..evaluation.bench.decode import time_decoding

    device = _device(device)
    report = Report(
        "decode", device, json, shape=shape, prompt=prompt, tokens=tokens, rank=rank, experts=experts, rounds=rounds
    )
    base, tokenizer = _random(shape, device)
    measured, left_out = time_decoding(
        base,
        tokenizer,
        rank=rank,
        experts=experts,
        prompt=prompt,
        tokens=tokens,
        rounds=rounds,
        limits=_limits(report, device, base),
    )
    report.add(f"{shape}, {prompt} tokens read, {tokens} written", measured)
    for name, reason in left_out.items():
        report.leave_out(name, reason)


def _limits(report: Report, device: str, base: PreTrainedModel) -> DeviceLimits:
    from ..evaluation.bench.machine import limits

    # The tiny model is for tests.
    device_limits = limits(device, base.dtype) if base.config.hidden_size > 32 else limits(device, base.dtype, 1, 64)
    report.note(copy_bandwidth=device_limits.copy_bandwidth, matrix_rate=device_limits.matrix_rate)
    return device_limits


@app.command()
def compare(
    base: Base = None,
    lora: Lora = None,
    slim: Slim = None,
    shape: Shape = "demo",
    rank: Rank = 4,
    experts: Experts = 8,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens per answer.")] = 64,
    prompt: Annotated[str, typer.Option(help="The question.")] = "What is the capital of Peru?",
    words: Annotated[int, typer.Option(min=1, help="Tokens that each turn of a conversation adds.")] = 32,
    rounds: Rounds = 7,
    device: Device = None,
    json: Json = None,
) -> None:
    """Base, LoRA and SLIM in one batch, compared with the base alone and with separate runs; a conversation's third
    turn."""
    from ..evaluation.bench.compare import experts_used, time_third_turn, time_ways

    device = _device(device)
    report = Report("compare", device, json, tokens=tokens, words=words, rounds=rounds, prompt=prompt)
    engine = _engine(base, lora, slim, shape, rank, experts, device)
    adapters = "; ".join(f"{variant.label} {variant.detail}" for variant in engine.variants[1:])
    report.note(base=engine.info.name, dtype=engine.info.dtype, adapters=adapters)
    report.say(f"{printable(engine.info.name)}, {engine.info.dtype}; {adapters}")
    used = experts_used(engine, prompt, tokens)
    report.note(experts_used=used)
    for name, number in used.items():
        report.say(f"{name}: a token gets {number:.2f} LoRA experts in each Linear")
    report.add(f"{tokens} tokens an answer", time_ways(engine, prompt, tokens, rounds))
    title = f"third turn of a conversation, {3 * words + 2 * tokens} tokens"
    report.add(title, time_third_turn(engine, words, tokens, rounds))


def _engine(
    base: str | None, lora: str | None, slim: str | None, shape: str, rank: int, experts: int, device: str
) -> Engine:
    from ..evaluation.bench.shapes import lora_config, random_engine, slim_config
    from ..inference import EngineError, load_engine

    try:
        if base is not None:
            return load_engine(base, lora=lora, slim=slim, device=device)
        model, tokenizer = _random(shape, device)
        configs = {"lora": lora_config(rank * experts), "slim": slim_config(rank, experts)}
        return random_engine(model, tokenizer, shape, configs)
    except EngineError as error:
        refuse(error)


@app.command()
def train(
    shape: Shape = "160M",
    batch: Batch = 4,
    length: Length = 256,
    rank: Rank = 16,
    experts: Experts = 8,
    method: Methods = ["slim"],  # noqa: B006
    rounds: Rounds = 5,
    device: Device = None,
    json: Json = None,
) -> None:
    """A training step of a PEFT LoRA, and of SLIM or other methods of equal total rank, with random weights."""
    from ..evaluation.bench.training import time_training

    device, methods = _device(device), _trained_beside_lora(method)
    settings: dict[str, Any] = {"rank": rank, "experts": experts, "batch": batch, "length": length, "rounds": rounds}
    report = Report("train", device, json, shape=shape, methods=methods, **settings)
    base, _ = _random(shape, device)
    report.add(f"{shape}, {batch} × {length} tokens", time_training(base, methods, **settings))


@app.command()
def memory(
    shape: Shape = "160M",
    prompt: Annotated[int, typer.Option(min=1, help="Tokens that are read.")] = 128,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens that are written.")] = 8,
    batch: Batch = 4,
    length: Length = 256,
    rank: Rank = 16,
    experts: Experts = 8,
    method: Methods = ["slim"],  # noqa: B006
    load_4bit: Annotated[bool, typer.Option("--load-4bit", help="The base in 4 bits.")] = False,
    device: Device = None,
    json: Json = None,
) -> None:
    """Peak memory of base, LoRA and SLIM in one batch and of the base alone, and of training steps of LoRA, and of
    SLIM or other methods; random weights."""
    from ..demo.chat import train_tokenizer
    from ..evaluation.bench.memory import MeasuredModel, memory_of_training, memory_used
    from ..extras import lacking

    if load_4bit and (missing := lacking("bitsandbytes", "A base in 4 bits")) is not None:
        refuse(missing)
    device, methods = _device(device), _trained_beside_lora(method)
    settings: dict[str, Any] = {"shape": shape, "rank": rank, "experts": experts}
    report = Report(
        "memory",
        device,
        json,
        **settings,
        methods=methods,
        four_bit=load_4bit,
        prompt=prompt,
        tokens=tokens,
        batch=batch,
        length=length,
    )
    measured = MeasuredModel(device=device, four_bit=load_4bit, **settings)
    name = (
        f"{shape}{' in 4 bits' if load_4bit else ''}, LoRA of rank {rank * experts}, {experts} experts of rank {rank}"
    )
    report.add_memory(
        f"{name}: answers", memory_used(train_tokenizer([TOKENIZED]), measured, prompt=prompt, tokens=tokens)
    )
    report.add_memory(
        f"{name}: training, {batch} × {length} tokens",
        memory_of_training(measured, methods, batch=batch, length=length),
    )


@app.command()
def load(
    base: Base = None,
    lora: Lora = None,
    slim: Slim = None,
    shape: Shape = "demo",
    rank: Rank = 4,
    experts: Experts = 8,
    clients: Clients = CLIENTS,
    questions: Annotated[int, typer.Option(min=1, help="Questions of a round, over all clients.")] = 64,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens per answer.")] = 8,
    rounds: Rounds = 3,
    device: Device = None,
    json: Json = None,
) -> None:
    """Several clients ask one engine in this process; base, LoRA and SLIM answer in turn."""
    from ..evaluation.bench.clients import ask_engine, serve_clients

    device = _device(device)
    report = Report("load", device, json, tokens=tokens, questions=questions, rounds=rounds)
    engine = _engine(base, lora, slim, shape, rank, experts, device)
    report.note(base=engine.info.name, dtype=engine.info.dtype)
    names = [variant.name for variant in engine.variants]
    report.add_clients(engine.info.name, serve_clients(ask_engine(engine, tokens), names, clients, questions, rounds))


@app.command()
def serve(
    url: Annotated[str, typer.Option(help="Where a server speaks OpenAI's protocol.")] = "http://127.0.0.1:7860/v1",
    model: Annotated[
        list[str], typer.Option(help="Models that are asked in turn; repeat for several. (default: all)")
    ] = [],  # noqa: B006
    clients: Clients = CLIENTS,
    questions: Annotated[int, typer.Option(min=1, help="Questions of a round, over all clients.")] = 64,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens per answer.")] = 8,
    rounds: Rounds = 3,
    json: Json = None,
) -> None:
    """Several clients ask a running server, such as `python -m slim_core serve --api-only`.

    Its key is read from SLIM_API_KEY.
    """
    from ..evaluation.bench.clients import ask_server, serve_clients, variants_of

    key = os.environ.get("SLIM_API_KEY") or "none"
    report = Report("serve", "cpu", json, tokens=tokens, questions=questions, rounds=rounds, url=url)
    try:
        names = model or variants_of(url, key)
    except OSError as error:
        refuse(error)
    report.note(models=names)
    report.add_clients(url, serve_clients(ask_server(url, key, tokens), names, clients, questions, rounds))
