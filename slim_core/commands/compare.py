# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core compare`: one question or many, the answers of base, LoRA and SLIM side by side."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..paths import DEMO
from .console import refuse, screen


if TYPE_CHECKING:
    from ..inference import GateSetting
    from .compare_blind import BlindVote


SAMPLING = "Sampling"


def compare(
    prompt: Annotated[str | None, typer.Argument(help="The question.", show_default=False)] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="File of questions instead of a single one: .txt (one per line), .csv with a column prompt, .json or "
            ".jsonl; - is standard input."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="New .csv or .json file for the answers to --prompts.")] = None,
    base: Annotated[str | None, typer.Option(help="Base model: folder or Hub id. (default: the demo)")] = None,
    lora: Annotated[str | None, typer.Option(help="LoRA: folder or Hub id. (default: the demo's)")] = None,
    slim: Annotated[str | None, typer.Option(help="SLIM adapter: folder or Hub id. (default: the demo's)")] = None,
    adapter: Annotated[
        list[str], typer.Option(help="Another adapter, of any kind: folder or Hub id; repeatable.")
    ] = [],  # noqa: B006
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option(rich_help_panel=SAMPLING, help="Maximum length of an answer, in tokens.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option(rich_help_panel=SAMPLING, help="Sampling temperature; 0 is greedy.")
    ] = 0.0,
    top_p: Annotated[float, typer.Option(rich_help_panel=SAMPLING, help="1 keeps all tokens.")] = 1.0,
    top_k: Annotated[int, typer.Option(rich_help_panel=SAMPLING, help="0 keeps all tokens.")] = 0,
    min_p: Annotated[float, typer.Option(rich_help_panel=SAMPLING, help="0 keeps all tokens.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(rich_help_panel=SAMPLING, help="1 means none.")] = 1.0,
    stop: Annotated[list[str], typer.Option(rich_help_panel=SAMPLING, help="Text that ends an answer.")] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(rich_help_panel=SAMPLING, help="Random seed that all answers share.")] = 0,
    strength: Annotated[
        float | None, typer.Option(help="Strength of SLIM's gate; 0 forces it open. (default: as trained)")
    ] = None,
    quantile: Annotated[
        float | None,
        typer.Option(
            help="Share of the training data beyond which SLIM's gate begins to close, such as 0.9. "
            "(default: as trained)"
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the base on the Hub.")] = None,
    load_4bit: Annotated[bool, typer.Option("--load-4bit", help="Load the base in 4 bits.")] = False,
    load_8bit: Annotated[bool, typer.Option("--load-8bit", help="Load the base in 8 bits.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps. (default: a GPU if there is one)")] = None,
    blind: Annotated[
        bool, typer.Option("--blind", help="Answers in random order without names, until you have chosen the best.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask base, LoRA, SLIM and other adapters the same question, in one batch on one copy of the base.

    All answers share their random numbers: where they differ, the models differ. Several questions are asked one after
    another; Ctrl-C ends the list and keeps the answers so far.
    """
    from ..adapters import clean_label
    from ..inference import EngineError, Message, Sampling, load_engine
    from .compare_blind import BlindVote

    sampling = Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        stop=tuple(stop),
        seed=seed,
    )
    try:
        if blind and prompts is not None:
            raise EngineError("--blind asks which answer to one question is the best; leave out --blind or --prompts.")
        if (prompt is None) == (prompts is None):
            raise EngineError("Ask one question, or name a file of questions with --prompts.")
        if prompts is None and output is not None:
            raise EngineError("--output saves the answers to --prompts; for a single question, use --json.")
        many = None
        if prompts is not None:
            # Not for a single question: it imports what reads data sets, which takes most of a second.
            from .compare_many import Many

            # Before the model is loaded, so that errors in a file are reported at once.
            many = Many.read(prompts, output, as_json)
        base, lora, slim = _sources(base, lora, slim)
        engine = load_engine(
            base,
            lora=lora,
            slim=slim,
            revision=revision,
            device=device,
            four_bit=load_4bit,
            eight_bit=load_8bit,
        )
        for source in adapter:
            engine.attach(source, label=clean_label(Path(source).name or source))
        gate = _gate(engine, strength, quantile)
        if many is not None:
            failed = many.run(engine, system or "", sampling, gate)
        else:
            assert prompt is not None  # or `Many.read` had refused
            messages = (*([Message("system", system)] if system else []), Message("user", prompt))
            failed = _run(engine, messages, sampling, gate, BlindVote(engine.variants) if blind else None, as_json)
    except EngineError as error:
        refuse(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if failed:
        raise typer.Exit(1)


def _sources(base: str | None, lora: str | None, slim: str | None) -> tuple[str, str | None, str | None]:
    """The named models, and the demo's for the rest. The demo's adapters fit only its own base."""
    from ..base.choice import demo_choice

    if base is not None:
        return base, lora, slim
    demo = demo_choice(DEMO, "--base, --lora and --slim")
    return demo.base, lora or demo.lora, slim or demo.slim


def _gate(engine, strength: float | None, quantile: float | None) -> GateSetting:
    """What is asked of the gates; raises EngineError if it is not possible."""
    from ..inference import GateSetting
    from .gates import gated_variants

    strengths, quantiles = ([] if number is None else [number] for number in (strength, quantile))
    gated_variants(engine.variants, strengths, quantiles)
    return GateSetting(strength, quantile)


def _run(engine, messages, sampling, gate: GateSetting, blind: BlindVote | None, as_json: bool) -> bool:
    """Answer and print. Returns whether all rows failed."""
    from rich.live import Live

    from ..inference import AS_TRAINED, Row, verdict_of
    from .compare_view import answers_view, drift_sentence, identity_by_block, identity_view, verdict_sentence

    gates = {v.name: AS_TRAINED if v.strength is None else gate for v in engine.variants}
    rows = [Row(v.name, messages, routing=v.kind == "slim", gate=gates[v.name]) for v in engine.variants]
    console = screen()
    live = console.is_terminal and not as_json
    with Live(console=console, refresh_per_second=8, transient=True, auto_refresh=live) as view:
        for step in engine.answer(rows, sampling):
            if live:
                view.update(answers_view(engine.variants, step.rows) if blind is None else blind.view(step.rows))
    if blind is not None and not as_json:
        console.print(blind.view(step.rows))
        if any(row.error is None for row in step.rows):
            blind.ask(console)
        console.print(blind.sentence, soft_wrap=True, highlight=False)
    drift = None
    readers = [v.name for v in engine.variants[1:]]
    if step.rows[0].token_ids and readers:
        drift = engine.drift(messages, step.rows[0].token_ids, readers, [gates[name] for name in readers])
    gated = {v.name for v in engine.variants if v.strength is not None}
    verdicts = {r.variant: verdict_of(r) for r in step.routing.values() if r.variant in gated}
    if as_json:
        output = {
            "model": asdict(engine.info),
            "answers": [asdict(row) for row in step.rows],
            "verdicts": {name: {"kind": v.kind} | asdict(v) for name, v in verdicts.items()},
            **asdict(gate),
            "identity_by_block": {r.variant: identity_by_block(r) for r in step.routing.values()},
            "times_less_likely": {d.variant: _finite(d.times_less_likely) for d in (drift.variants if drift else ())},
        }
        if blind is not None:
            output["blind"] = blind.record
        print(json.dumps(output, indent=2, ensure_ascii=False))
    else:
        console.print(answers_view(engine.variants, step.rows))
        labels = {v.name: v.label for v in engine.variants}
        for name, verdict in verdicts.items():
            same = len({row.text for row in step.rows if row.variant in ("base", name)}) == 1
            sentence = verdict_sentence(labels[name], verdict, same, gate)
            console.print(sentence, soft_wrap=True, highlight=False)
        for routing in step.routing.values():
            console.print(identity_view(routing))
        if drift is not None:
            taught = gate == AS_TRAINED and any(verdict.kind == "like" for verdict in verdicts.values())
            console.print(drift_sentence(engine.variants, drift, taught), soft_wrap=True, highlight=False)
    return all(row.error is not None for row in step.rows)


def _finite(number: float) -> float | None:
    """The number, or None if it is infinite or NaN, which JSON cannot express."""
    return number if math.isfinite(number) else None
