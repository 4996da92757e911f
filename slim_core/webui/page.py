# SPDX-License-Identifier: Apache-2.0
"""What the tabs of the page share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from ..base.choice import DEMO_NAME
from .backend import Backend
from .config import Config
from .state.session import Session
from .state.uploads import Uploads
from .state.visits import Visits
from .wire import forgetting
from .wire.views import drift, routing, shelf, transcript
from .words import base_name


@dataclass
class Page:
    """What the tabs share.

    Attributes:
        demo: the interface that is being built.
        backend: the model.
        config: the app's settings.
        results: stored scores on forgetting; None if there are none.
        uploads: files that visitors sent.
        visits: the sessions of all pages.
        session: the visitor's `Session`, on the server.
        status: the line that screen readers read aloud.
        transcript: columns and conversation.
        meter: how far the prompt in the box is from the training data.
        routing: the routing view.
        detail: one token in full.
        drift: the drift view.
        mailbox: hands files and links to the browser.
        keeper: saves the conversation in the browser, and offers to restore it.
        checks: the checks of the adapter that is being added.
        shelf: the adapters in the columns that a visitor can fill.
        forgetting: the stored results.
        headline: a summary of them.
        switch: how far switching to another base has got.
        tabs: the tabs, to open one of them.
        clock: regularly checks whether the base has been switched. It is outside the tabs, since inside one it would
            not run until that tab is opened.
        settings: the fields under Compare, in the order of `settings.NAMES`. This and the next are set by the Compare
            tab, which is built first.
        connect_examples: lets buttons, each with its prompt, ask at once.
    """

    demo: gr.Blocks
    backend: Backend
    config: Config
    results: dict[str, Any] | None
    uploads: Uploads
    visits: Visits
    session: gr.State
    status: gr.HTML
    transcript: gr.HTML
    meter: gr.HTML
    routing: gr.HTML
    detail: gr.HTML
    drift: gr.HTML
    mailbox: gr.HTML
    keeper: gr.HTML
    checks: gr.HTML
    shelf: gr.HTML
    forgetting: gr.HTML
    headline: gr.HTML
    switch: gr.HTML
    tabs: gr.Tabs
    clock: gr.Timer
    settings: list[gr.components.Component] = field(init=False)
    connect_examples: Callable[[list[tuple[gr.Button, str]]], None] = field(init=False)

    @property
    def is_demo(self) -> bool:
        """Whether the app started with the demo's model."""
        return base_name(self.backend.engine.info) == DEMO_NAME

    @property
    def of_columns(self) -> list[gr.HTML]:
        """The parts that depend on which variants answer in the columns."""
        return [self.transcript, self.routing, self.drift, self.shelf, self.forgetting, self.headline]

    def column_updates(self, session: Session) -> dict[gr.HTML, Any]:
        """Their current values."""
        return {
            self.transcript: transcript(session, self.backend),
            self.routing: routing(session, self.backend),
            self.drift: drift(session, self.backend),
            self.shelf: shelf(session, self.backend),
            self.forgetting: self.stored(session),
            self.headline: forgetting.headline(self.results if self.backend.is_first else None, session),
        }

    def stored(self, session: Session) -> dict[str, Any]:
        """The stored scores on forgetting; none for a base that was switched to later."""
        first = self.backend.is_first
        return forgetting.tab_view(self.results if first else None, session, first and not self.config.base)
