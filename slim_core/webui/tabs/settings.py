# SPDX-License-Identifier: Apache-2.0
"""The settings of an answer: their components, and restoring them from the browser or a link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from ...inference import GateSetting
from ...inference.types import Sampling
from ..limits import RANGES, LimitError, check_sampling, check_text, ranges, split_stops


NUMBERS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens", "seed")
GATE = tuple(field.name for field in fields(GateSetting))
NAMES = (*NUMBERS, "stop", "system", "one_at_a_time")
# Browsers and servers in between cut longer addresses.
MAX_LINK = 6000


@dataclass(frozen=True)
class Settings:
    """A visitor's settings, checked.

    Attributes:
        sampling: how tokens are chosen.
        system: the system prompt.
        one_at_a_time: whether the answers are written one after another.
    """

    sampling: Sampling
    system: str = ""
    one_at_a_time: bool = False


def defaults(longest: int) -> dict[str, Any]:
    """A new visitor's values, by name; `longest` is the most tokens of an answer that this server allows."""
    plain = asdict(Sampling())
    plain["max_new_tokens"] = min(plain["max_new_tokens"], longest)
    return {name: plain[name] for name in NUMBERS} | {"stop": "", "system": "", "one_at_a_time": False}


def check(values: Mapping[str, Any], longest: int) -> Settings:
    """Settings from values by name.

    Args:
        values: as they come from the page.
        longest: the most tokens of an answer that this server allows.

    Raises:
        LimitError: with a sentence.
    """
    numbers = {name: values[name] for name in NUMBERS}
    sampling = check_sampling(split_stops(values["stop"] or ""), longest, **numbers)
    system = check_text(values["system"] or "", "The system prompt").strip()
    return Settings(sampling, system, values["one_at_a_time"] is True)


def restore(saved: Any, longest: int) -> dict[str, Any]:
    """Values from the browser's store or a link: values that are no longer allowed get their default."""
    values = defaults(longest)
    if not isinstance(saved, Mapping):
        return values
    for name in NAMES:
        if name not in saved:
            continue
        value = saved[name]
        if isinstance(value, str) and name in NUMBERS:
            try:
                value = float(value)
            except ValueError:
                continue
        elif isinstance(value, str) and name == "one_at_a_time":
            value = value == "1"
        try:
            check(values | {name: value}, longest)
        except (LimitError, TypeError):
            continue
        values[name] = RANGES[name].check(value) if name in NUMBERS else value
    return values


def link(prompt: str, values: Mapping[str, Any], gate: GateSetting, longest: int) -> str:
    """The query of an address that opens this prompt with these settings; only what is not the default is in it.

    Args:
        prompt: may be empty.
        values: by name.
        gate: in SLIM's column.
        longest: the most tokens of an answer that this server allows.

    Raises:
        LimitError: if the address would be too long.
    """
    usual = defaults(longest)
    query = {"prompt": prompt} if prompt else {}
    query |= {name: f"{value:g}" for name, value in asdict(gate).items() if value is not None}
    for name in NAMES:
        value = values[name]
        if value is not None and value != usual[name]:
            query[name] = "1" if value is True else f"{value:g}" if isinstance(value, float) else str(value)
    text = urlencode(query)
    if len(text) > MAX_LINK:
        raise LimitError(f"The link would have {len(text):,} characters; at most {MAX_LINK:,} work everywhere.")
    return text


def components(longest: int) -> dict[str, gr.components.Component]:
    """The accordion's inside."""
    start = defaults(longest)
    fields: dict[str, gr.components.Component] = {}

    allowed = ranges(longest)

    def slider(name: str, label: str, step: float, info: str) -> None:
        limits = allowed[name]
        fields[name] = gr.Slider(
            limits.low, limits.high, start[name], step=step, label=label, info=info, elem_id=f"slim-{name}"
        )

    with gr.Row():
        slider("temperature", "Temperature", 0.05, "0 always takes the most likely token")
        slider("max_new_tokens", "Longest answer", 1, "tokens")
        fields["seed"] = gr.Number(
            start["seed"],
            precision=0,
            label="Seed",
            info="the same random numbers for all columns",
            elem_id="slim-seed",
        )
    with gr.Row():
        slider("top_p", "Top-p", 0.01, "1 keeps all")
        slider("top_k", "Top-k", 1, "0 keeps all")
        slider("min_p", "Min-p", 0.01, "0 keeps all")
        slider("repetition_penalty", "Repetition penalty", 0.05, "1 changes nothing")
    with gr.Row():
        fields["system"] = gr.Textbox("", label="System prompt", lines=2, max_lines=8, elem_id="slim-system")
        fields["stop"] = gr.Textbox(
            "", label="Stop texts", info="one per line; each ends an answer", lines=2, max_lines=8, elem_id="slim-stop"
        )
    fields["one_at_a_time"] = gr.Checkbox(
        False,
        label="One at a time",
        info="for slow machines: the answers are written one after another",
        elem_id="slim-one",
    )
    return {name: fields[name] for name in NAMES}
