# SPDX-License-Identifier: Apache-2.0
"""Notices that Gradio shows at the page's edge. Gradio treats them as HTML; here they are always text."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr


Updates = dict[Any, Any]


def notice(sentence: str, title: str) -> None:
    """Show a message, which may quote untrusted text."""
    gr.Warning(escape(sentence), title=title)


def warn(error: Exception) -> Updates:
    """Show why something is not possible; changes nothing."""
    notice(str(error), "Not possible")
    return gr.skip()
