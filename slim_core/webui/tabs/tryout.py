# SPDX-License-Identifier: Apache-2.0
"""Buttons for prompts to try, and what to look for in each."""

from __future__ import annotations

import gradio as gr

from ..components import fixed
from .examples import TITLES, ExamplePrompt, Gallery


Buttons = list[tuple[gr.Button, str]]


def build(prefix: str, gallery: Gallery, with_single: bool = True) -> Buttons:
    """Lay the buttons out, pair by pair.

    Args:
        prefix: of the elements' ids.
        gallery: what there is to try.
        with_single: whether to show the single prompts too.

    Returns:
        Each button with its prompt.
    """
    buttons: Buttons = []
    with gr.Column(elem_id=f"{prefix}-examples", elem_classes=["slim-examples"]):
        if gallery.pairs:
            with gr.Row(elem_classes=["slim-pair", "slim-titles"]):
                for title in TITLES:
                    with gr.Column(min_width=280):
                        fixed("<h2>{{title}}</h2>", title=title)
        for number, pair in enumerate(gallery.pairs):
            with gr.Row(elem_classes=["slim-pair"], equal_height=False):
                buttons += [_one(f"{prefix}-{number}-{side}", example) for side, example in enumerate(pair)]
        if with_single and gallery.single:
            if gallery.pairs:
                fixed("<h2>{{title}}</h2>", title="What they should not forget")
            with gr.Row(elem_classes=["slim-pair", "slim-alone"], equal_height=False):
                buttons += [_one(f"{prefix}-alone-{number}", example) for number, example in enumerate(gallery.single)]
    return buttons


def _one(elem_id: str, example: ExamplePrompt) -> tuple[gr.Button, str]:
    with gr.Column(min_width=280, elem_classes=["slim-try"]):
        button = gr.Button(example.prompt, size="sm", elem_classes=["slim-example"], elem_id=elem_id)
        if example.see:
            fixed('<p class="slim-note">{{see}}</p>', see=example.see)
    return button, example.prompt
