# SPDX-License-Identifier: Apache-2.0
"""The layout: the parts of the page in their order."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from .backend import Backend
from .components import canvas, fixed
from .config import Config
from .http.interface import Interface
from .page import Page
from .state.session import Session
from .state.uploads import Uploads
from .state.visits import Visits
from .state.wizard import untouched
from .tab_list import TABS, Tab
from .wire import forgetting
from .wire.api import add_api
from .wire.views import drift as drift_view
from .wire.views import routing as routing_view
from .wire.views import shelf as shelf_view
from .wire.views import transcript
from .words import base_name


STATUS_SECONDS = 5.0  # between two messages to clients that wait in Gradio's queue
CLOCK_SECONDS = 2.0  # how often a page asks whether the base is another one
TITLE = "SLIM Compare"
LEAD = "One prompt, three answers: the base model, LoRA, and SLIM, whose adapter unfamiliar prompts bypass."


def build(backend: Backend, config: Config, results: dict[str, Any] | None = None) -> Interface:
    """The whole interface.

    Args:
        backend: the model.
        config: limits and the like.
        results: stored scores on forgetting; None if there are none.
    """
    empty, info, visits = Session(), backend.engine.info, Visits(backend.visitor_adapters.leave)
    with Interface(title=TITLE, fill_width=True, analytics_enabled=False) as demo:
        page = Page(
            demo=demo,
            backend=backend,
            config=config,
            results=results,
            uploads=Uploads(),
            visits=visits,
            session=gr.State(Session(), delete_callback=lambda session: _gone(session, visits, backend)),
            status=canvas("status", "Ready.", render=False),
            transcript=canvas(
                "transcript",
                transcript(empty, backend),
                ("stop_one", "retry_one", "edit_turn", "change_column", "set_gate", "vote"),
                render=False,
            ),
            meter=canvas("meter", None, ("peek",), render=False),
            routing=canvas("routing", routing_view(empty, backend), ("choose", "pick"), render=False),
            detail=canvas("detail", None, render=False),
            drift=canvas("drift", drift_view(empty, backend), render=False),
            mailbox=canvas("mailbox", None, render=False),
            keeper=canvas("keeper", None, ("restore", "go_on"), render=False),
            checks=canvas("checks", untouched(), render=False),
            shelf=canvas("shelf", shelf_view(empty, backend), ("remove",), render=False),
            forgetting=canvas("forgetting", forgetting.tab_view(results, empty, not config.base), render=False),
            headline=canvas("headline", forgetting.headline(results, empty), ("open",), render=False),
            switch=canvas("switch", None, render=False),
            tabs=gr.Tabs(elem_id="slim-tabs", render=False),
            clock=gr.Timer(CLOCK_SECONDS, active=not backend.choices.fixed, render=False),
        )
        fixed(
            '<header><div><h1>{{title}}</h1><p>{{lead}}</p></div><p class="slim-model">{{model}}</p></header>',
            "slim-header",
            title=TITLE,
            lead=LEAD,
            model=f"{base_name(info)} · {info.dtype} · {info.device}",
        )
        page.switch.render()
        page.clock.render()
        page.status.render()
        page.mailbox.render()
        page.keeper.render()
        address = canvas("address", [tab.id for tab in TABS], ("open_tab",))
        page.tabs.render()
        with page.tabs:
            for tab in TABS:
                with gr.Tab(tab.title, id=tab.id) as layout:
                    tab.build(page, layout)
                _on_opening(page, tab, layout)
        address.open_tab(None, None, page.tabs, js="() => slim.address.wanted()", api_visibility="private")
        add_api(backend, config)

        def left(request: gr.Request) -> None:
            """A visitor closed the page: uploads are deleted now, adapters in a minute. The conversation is kept for
            an hour.
            """
            page.uploads.drop(str(request.session_hash))
            page.visits.close(str(request.session_hash))

        demo.unload(left)
    # With "auto" Gradio notifies all waiting clients of each start, in the loop that starts their events; one that has
    # just left raises a KeyError there, which ends the loop, and no more events are served. The rate is shown
    # elsewhere.
    demo.queue(
        max_size=config.queue_size, default_concurrency_limit=config.concurrency, status_update_rate=STATUS_SECONDS
    )
    return demo


def _on_opening(page: Page, tab: Tab, layout: gr.Tab) -> None:
    if tab.refreshed is not None:
        redrawn = tab.refreshed(page)
        layout.select(
            lambda session: page.column_updates(session)[redrawn],
            [page.session],
            [redrawn],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
    layout.select(None, js=f"() => slim.address.at({json.dumps(tab.id)})", api_visibility="private")


def _gone(session: Session, visits: Visits, backend: Backend) -> None:
    if not visits.leave(session):
        return
    if session.run is not None:
        session.run.stop()
    backend.visitor_adapters.leave(session.owner)
