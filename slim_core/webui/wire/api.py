# SPDX-License-Identifier: Apache-2.0
"""The API: three plain functions for programs, notebooks, and agents."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr
from torch import Tensor

from ...base.messages import Message
from ...inference import AS_TRAINED, EngineError, Stops, verdict_of
from ...inference.types import Drift, Reading, RoutingRecord, Row, RowStep, Sampling, Step
from ...outside.errors import quoted
from ..backend import Backend, Job
from ..config import Config
from ..limits import LimitError, check_gate, check_prompt, check_room, check_sampling, check_text
from ..words import base_name
from .stream import INTERVAL


# Of a variant, in the answer of `/models`.
MODEL_FIELDS = ("name", "kind", "label", "parameters", "detail", "strength", "quantiles")


def add_api(backend: Backend, config: Config) -> None:
    """Add `/compare`, `/routing` and `/models` to the interface that is being built."""
    # Each waits in the model's own queue, or is refused if that is full. Its id is not the page's, since Gradio would
    # apply one limit to both together.
    work = {"concurrency_id": "api", "concurrency_limit": None}
    usual = min(Sampling().max_new_tokens, config.max_new_tokens)

    # The page and agents show the text before `Args`; only agents get the arguments, the first line of each.
    def compare(
        prompt: str,
        system: str = "",
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        max_new_tokens: int = usual,
        stop: list[str] = [],  # noqa: B006 - the schema shows it
        seed: int = 0,
        strength: float | None = None,
        quantile: float | None = None,
        request: gr.Request | None = None,
    ) -> Iterator[dict]:
        """Answer a prompt by the base model, LoRA and SLIM at once.

        While the answers are written, an object comes again and again. It has `base`, `lora` and `slim`, each with
        `text`, `tokens` (how many so far), `finish_reason` (null until it ends, then "end", "length", "stop_string",
        "stopped" or "error") and, where it failed, `error`. The last one may also have `drift`: for `lora` and `slim`
        the natural logarithm of how many times less likely each finds the base's answer, and for each adapter with a
        gate a `verdict`: its `kind` ("like", "unlike" or "mixed", the training data), `identity` (the share that went
        past LoRA), `distance`, `reference` (up to which a distance is like the training data), `closing` (how much
        the gates took from LoRA), `closed` (share of the gates that are 0) and `exact` (whether all were 0 at every
        token).

        Args:
            prompt: the user's message.
            system: the system prompt.
            temperature: 0 to 2; 0 is greedy.
            top_p: 0.01 to 1; keep the most likely tokens that together have this probability.
            top_k: 0 to 1000; keep this many tokens; 0 keeps all.
            min_p: 0 to 1; keep tokens at least this fraction as likely as the most likely one.
            repetition_penalty: 0.5 to 2; above 1 makes repeated tokens less likely.
            max_new_tokens: 1 to MOST; the longest answer in tokens.
            stop: a list of at most 8 texts of at most 100 characters that end an answer.
            seed: 0 to 9007199254740991; random seed that all variants share.
            strength: 0 to 100, or null for as trained; how strongly SLIM's gate closes with the distance; 0 is open.
            quantile: share of the training data beyond which SLIM's gate begins to close, or null for as trained.
        """
        numbers = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
        }
        variants = [variant.name for variant in backend.variants]
        gate = (strength, quantile)
        yield from _throttled(_compare(prompt, system, stop, numbers, variants, gate, _address(request)))

    def routing(
        prompt: str,
        variant: str = "slim",
        system: str = "",
        max_new_tokens: int = min(64, usual),
        strength: float | None = None,
        quantile: float | None = None,
        request: gr.Request | None = None,
    ) -> dict:
        """Answer a prompt greedily with one variant, and return the routing of each token.

        The object has `text`, `finish_reason`, `tokens` (texts of the prompt's and the answer's), `prompt_tokens` (how
        many of them are the prompt), `modules` (names of the Linears), `blocks` (their layers) and `identity`: for
        each Linear the share of each token that went past LoRA, from 0 to 1. Where the adapter has a gate, it also has
        `gate` (what the gate of each Linear lets through of the LoRA experts, for each token) and the `verdict` of
        `/compare`; without one both are null.

        Args:
            prompt: the user's message.
            variant: which adapter, as `/models` names it.
            system: the system prompt.
            max_new_tokens: 1 to MOST; the longest answer in tokens.
            strength: 0 to 100, or null for as trained; how strongly the gate closes with the distance; 0 is open.
            quantile: share of the training data beyond which the gate begins to close, or null for as trained.
        """
        names = [v.name for v in backend.adapters]
        # In a list, not a set: a program may send something that has no hash.
        if variant not in names:
            known = ", ".join(names) or "none"
            raise gr.Error(f"There is no adapter {quoted(variant, 40)}; there are: {known}.", print_exception=False)
        last: RowStep | None = None
        record: RoutingRecord | None = None
        numbers = {"max_new_tokens": max_new_tokens}
        gate = (strength, quantile)
        for item in _run(prompt, system, (), numbers, [variant], False, gate, _address(request)):
            if isinstance(item, Step):
                last, record = item.rows[0], item.routing.get(0, record)
        if last is None or last.error or record is None:
            raise gr.Error(
                (last.error if last is not None else None) or "There is no record of who answered.",
                print_exception=False,
            )
        gated = variant in _gated()
        return {
            "text": last.text,
            "finish_reason": last.finish_reason,
            "tokens": list(record.tokens),
            "prompt_tokens": record.prompt_tokens,
            "modules": list(record.modules),
            "blocks": list(record.blocks),
            "identity": _rows(record.identity),
            "gate": _rows(record.gate) if gated else None,
            "verdict": _verdict(record) if gated else None,
        }

    def models() -> dict:
        """What is loaded: the base model and its variants.

        The object has `base` (with `name`, `parameters`, `dtype`, `device` and `context_length`) and `variants`, a
        list (each with `name`, `kind`, `label`, `parameters`, `detail`, `strength`, of its gate as it was trained,
        null without one, and `quantiles`, those whose distance it stores).
        """
        info = backend.engine.info
        return {
            "base": {
                "name": base_name(info),
                "parameters": info.parameters,
                "dtype": info.dtype,
                "device": info.device,
                "context_length": info.context_length,
            },
            "variants": [{name: getattr(v, name) for name in MODEL_FIELDS} for v in backend.variants],
        }

    def _run(
        prompt: str,
        system: str,
        stop: Any,
        numbers: dict,
        names: list[str],
        drift: bool,
        gate: tuple[Any, Any],
        visitor: str | None,
    ) -> Generator[Step | Drift, None, None]:
        try:
            gates = {v.name: check_gate(*gate, v.quantiles) for v in backend.adapters if v.strength is not None}
            messages: tuple[Message, ...] = (Message("user", check_prompt(prompt)),)
            if system := check_text(system, "The system prompt").strip():
                messages = (Message("system", system), *messages)
            sampling: Sampling = check_sampling(stop, config.max_new_tokens, **numbers)
            check_room(backend.engine.count_tokens(messages), backend.engine.info.context_length)
            # If the whole record is not requested, only the verdict is sent.
            rows = tuple(Row(n, messages, not drift or n in gates, gates.get(n, AS_TRAINED)) for n in names)
            readers = tuple(v.name for v in backend.adapters) if drift else ()
            of_readers = tuple(gates.get(name, AS_TRAINED) for name in readers)
            reading = Reading(readers, messages, gates=of_readers) if readers else None
            stops = Stops(len(rows))
            backend.enter(visitor)
            try:
                work = backend.run(Job(rows, sampling, reading=reading, visitor=visitor, keep=False), stops)
                try:
                    yield from work
                finally:
                    stops.stop_all()
                    work.close()
            finally:
                backend.leave(visitor)
        except (LimitError, EngineError) as error:
            raise gr.Error(str(error), print_exception=False) from None

    def _gated() -> set[str]:
        return {v.name for v in backend.adapters if v.strength is not None}

    def _compare(
        prompt: str,
        system: str,
        stop: Any,
        numbers: dict,
        names: list[str],
        gate: tuple[Any, Any],
        visitor: str | None,
    ) -> Generator[dict, None, None]:
        result: dict[str, Any] = {}
        for item in _run(prompt, system, stop, numbers, names, True, gate, visitor):
            if isinstance(item, Drift):
                result = result | {"drift": {v.variant: v.total for v in item.variants}}
            else:
                result = {
                    row.variant: {"text": row.text, "tokens": row.tokens, "finish_reason": row.finish_reason}
                    | ({"error": row.error} if row.error else {})
                    for row in item.rows
                }
                if item.done and item.routing:
                    result["verdict"] = {names[i]: _verdict(record) for i, record in item.routing.items()}
            yield result

    for function in (compare, routing):
        # What this app allows; the page, agents and the schema read it here.
        function.__doc__ = (function.__doc__ or "").replace("MOST", f"{config.max_new_tokens}")
    gr.api(compare, api_name="compare", **work)
    gr.api(routing, api_name="routing", **work)
    gr.api(models, api_name="models", queue=False)


def _address(request: gr.Request | None) -> str | None:
    """Who asks: programs of one address take turns with others, not with each other."""
    client = None if request is None else request.client
    return None if client is None else client.host


def _rows(numbers: Tensor) -> list[list[float]]:
    return [[round(float(x), 4) for x in row] for row in numbers]


def _verdict(record: RoutingRecord) -> dict[str, Any]:
    verdict = verdict_of(record)
    return {"kind": verdict.kind} | asdict(verdict)


def _throttled(values: Generator[dict, None, None]) -> Iterator[dict]:
    """At most 12 a second, and always the last."""
    last, sent = None, 0.0
    try:
        for last in values:
            if time.monotonic() - sent >= INTERVAL:
                sent = time.monotonic()
                yield last
                last = None
        if last is not None:
            yield last
    finally:
        values.close()
