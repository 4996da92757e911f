# SPDX-License-Identifier: Apache-2.0
"""Components that are drawn by our own scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import gradio as gr


def canvas(name: str, value: Any, events: Sequence[str] = (), render: bool = True) -> gr.HTML:
    """A part of the page that a script draws from plain data.

    Args:
        name: of the script's function and of the element: `slim.<name>` draws `#slim-<name>`.
        value: plain data.
        events: what the script can trigger.
        render: whether it stands where it is made.
    """
    return gr.HTML(
        value,
        # The template never changes, so Gradio never draws over what the script drew.
        html_template='<div class="slim-root"></div>',
        js_on_load=f"slim.{name}({{element, props, trigger, watch, events: {json.dumps(list(events))}}});",
        elem_id=f"slim-{name}",
        elem_classes=["slim-canvas"],
        apply_default_css=False,
        render=render,
    )


def fixed(template: str, elem_id: str | None = None, **texts: str) -> gr.HTML:
    """HTML that never changes; `{{name}}` is replaced by escaped text.

    Args:
        template: our own HTML.
        elem_id: of the element.
        texts: what the names stand for.
    """
    return gr.HTML(
        html_template=template,
        js_on_load=None,
        elem_id=elem_id,
        elem_classes=["slim-canvas"],
        apply_default_css=False,
        **cast("dict[str, Any]", texts),
    )
