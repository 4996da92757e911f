# SPDX-License-Identifier: Apache-2.0
"""The tabs of the page, in their order. A new tab is a file in `tabs/` and an entry here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import gradio as gr

from .page import Page
from .tabs import about, adapters, compare, forgetting, many, models, routing


class Tab(NamedTuple):
    """One tab.

    Attributes:
        id: its name in the address, as in `#tab=routing`.
        title: what people read.
        build: lays it out and connects its events.
        refreshed: the part of the page to draw again when the tab is opened; None for none. What changes while a tab
            has never been open does not reach it.
    """

    id: str
    title: str
    build: Callable[[Page, gr.Tab], None]
    refreshed: Callable[[Page], gr.HTML] | None = None


# Compare is first: it opens with the page, and other tabs use its settings.
TABS = (
    Tab("compare", "Compare", compare.build),
    Tab("many", "Many prompts", many.build),
    Tab("adapters", "Adapters", adapters.build, lambda page: page.shelf),
    Tab("routing", "Routing", routing.build, lambda page: page.routing),
    Tab("drift", "Drift", lambda page, _: page.drift.render(), lambda page: page.drift),
    Tab("forgetting", "Forgetting", forgetting.build, lambda page: page.forgetting),
    Tab("model", "Model", models.build),
    Tab("about", "About", about.build),
)
