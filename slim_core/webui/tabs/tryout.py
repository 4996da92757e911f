# SPDX-License-Identifier: Apache-2.0
"""Buttons of prompts to try, with what one should see of each."""

from __future__ import annotations

import json

import gradio as gr

from ..components import fixed
from .examples import ALONE, PAIRS, TITLES, Try, short


def build(prefix: str, script: str, alone: bool, see: bool) -> None:
    """Lay the buttons out, pair by pair.

    Args:
        prefix: of the elements' ids.
        script: what a button does in the browser; `text` is its prompt.
        alone: whether the prompts without a partner come as well.
        see: whether it says what one should see.
    """
    with gr.Column(elem_id=f"{prefix}-examples", elem_classes=["slim-examples"]):
        with gr.Row(elem_classes=["slim-pair", "slim-titles"]):
            for title in TITLES:
                with gr.Column(min_width=280):
                    fixed("<h2>{{title}}</h2>", title=title)
        for number, pair in enumerate(PAIRS):
            with gr.Row(elem_classes=["slim-pair"], equal_height=False):
                for side, one in enumerate(pair):
                    with gr.Column(min_width=280, elem_classes=["slim-try"]):
                        _one(f"{prefix}-{number}-{side}", one, script, see)
        if alone:
            with gr.Row(elem_classes=["slim-pair", "slim-alone"], equal_height=False):
                for number, one in enumerate(ALONE):
                    with gr.Column(min_width=280, elem_classes=["slim-try"]):
                        _one(f"{prefix}-alone-{number}", one, script, see)


def _one(elem_id: str, one: Try, script: str, see: bool) -> None:
    button = gr.Button(short(one.prompt), size="sm", elem_classes=["slim-example"], elem_id=elem_id)
    if see:
        fixed('<p class="slim-note">{{see}}</p>', see=one.see)
    text = json.dumps(one.prompt).replace("<", "\\u003c")
    # In the browser alone.
    button.click(None, None, None, js=f"() => {{ const text = {text}; {script} }}", api_visibility="private")
