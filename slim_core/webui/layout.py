# SPDX-License-Identifier: Apache-2.0
"""The layout: the parts of the page in their order."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from ..paths import ASSETS
from .backend import Backend
from .components import canvas, fixed
from .config import Config
from .http.interface import Interface
from .page import Page
from .state.session import Session
from .state.uploads import Uploads
from .state.visits import Visits
from .state.wizard import untouched
from .tabs import about, adapters, compare, many, models, routing
from .wire import forgetting
from .wire.api import add_api
from .wire.views import drift as drift_view
from .wire.views import routing as routing_view
from .wire.views import shelf as shelf_view
from .wire.views import transcript
from .words import base_name


STATUS_SECONDS = 5.0  # between two messages to those who wait in Gradio's queue
TITLE = "SLIM Compare"
LEAD = "One prompt, three answers: the base model, LoRA, and SLIM, which lets unfamiliar prompts past its adapter."


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
            forgetting=canvas("forgetting", forgetting.shown(results, empty, not config.base), render=False),
            headline=canvas("headline", forgetting.headline(results, empty), ("open",), render=False),
            switch=canvas("switch", None, render=False),
        )
        fixed(
            '<header><div><h1>{{title}}</h1><p>{{lead}}</p></div><p class="slim-model">{{model}}</p></header>',
            "slim-header",
            title=TITLE,
            lead=LEAD,
            model=f"{base_name(info)} · {info.dtype} · {info.device}",
        )
        page.switch.render()
        clock = gr.Timer(models.SECONDS, active=not backend.choices.fixed)
        page.status.render()
        page.mailbox.render()
        page.keeper.render()
        address = canvas("address", None, ("open_tab",))
        with gr.Tabs(elem_id="slim-tabs") as tabs:
            with gr.Tab("Compare", id="compare") as of_compare:
                connect, settings = compare.build(page, demo, tabs)
            with gr.Tab("Many prompts", id="many") as of_many:
                many.build(page, settings, of_many)
            with gr.Tab("Adapters", id="adapters") as of_adapters:
                adapters.build(page, tabs)
            with gr.Tab("Routing", id="routing") as of_routing:
                routing.build(page, connect)
            with gr.Tab("Drift", id="drift") as of_drift:
                page.drift.render()
            with gr.Tab("Forgetting", id="forgetting") as of_forgetting:
                page.forgetting.render()
            with gr.Tab("Model", id="model") as of_model:
                models.build(page, demo, clock)
            with gr.Tab("About", id="about") as of_about:
                about.build(page, ASSETS / "slim-layer.svg", of_about)
        # What changed while a tab had never been open did not reach it.
        opened = ((of_adapters, page.shelf), (of_routing, page.routing), (of_drift, page.drift))
        for tab, part in (*opened, (of_forgetting, page.forgetting)):
            tab.select(
                lambda session, part=part: page.column_updates(session)[part],
                [page.session],
                [part],
                queue=False,
                show_progress="hidden",
                api_visibility="private",
            )
        in_order = (of_compare, of_many, of_adapters, of_routing, of_drift, of_forgetting, of_model, of_about)
        for tab in in_order:
            tab.select(None, js=f"() => slim.address.at({json.dumps(tab.id)})", api_visibility="private")
        address.open_tab(None, None, tabs, js="() => slim.address.wanted()", api_visibility="private")
        add_api(backend, config)

        def left(request: gr.Request) -> None:
            """A visitor closed the page: files go, and in a minute adapters. The conversation is kept for an hour."""
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


def _gone(session: Session, visits: Visits, backend: Backend) -> None:
    if not visits.leave(session):
        return
    if session.run is not None:
        session.run.stop()
    backend.visitor_adapters.leave(session.owner)
