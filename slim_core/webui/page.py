# SPDX-License-Identifier: Apache-2.0
"""The page: its parts in order, and what they share."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from ..adapters.errors import reason
from ..paths import ASSETS
from . import about, adapters, compare, drift, forgetting, models, routing
from .api import add_api
from .backend import Backend
from .choices import DEMO_NAME
from .components import canvas, fixed
from .config import Config, ConfigError
from .session import Session
from .uploads import Uploads
from .views import drift as drift_view
from .views import routing as routing_view
from .views import shelf as shelf_view
from .views import transcript
from .wizard import untouched
from .words import base_name


SCRIPTS = (
    "common", "strip", "gate", "meter", "transcript", "curve", "heatmap", "picture", "routing", "detail", "drift",
    "mailbox", "plane", "forgetting", "facts", "adapters", "model",
)  # fmt: skip
STYLES = ("page", "compare", "routing", "adapters")
STATUS_SECONDS = 5.0  # between two messages to those who wait in Gradio's queue
TITLE = "SLIM Compare"
LEAD = "One prompt, three answers: the base model, LoRA, and SLIM, which lets unfamiliar prompts past its adapter."


@dataclass
class Page:
    """What the tabs share.

    Attributes:
        backend: the model.
        config: the app's settings.
        results: what is stored on forgetting; None where there is nothing.
        uploads: files that visitors sent.
        session: the visitor's `Session`, on the server.
        status: the one line that is read aloud.
        transcript: columns and conversation.
        meter: how far the prompt in the box is from the training data.
        routing: the routing view.
        detail: one token in full.
        drift: the drift view.
        mailbox: hands files and links to the browser.
        checks: the checks of the adapter that is on its way.
        shelf: what answers in the columns that a visitor can fill.
        forgetting: the stored results.
        switch: how far the way to another base is.
    """

    backend: Backend
    config: Config
    results: dict[str, Any] | None
    uploads: Uploads
    session: gr.State
    status: gr.HTML
    transcript: gr.HTML
    meter: gr.HTML
    routing: gr.HTML
    detail: gr.HTML
    drift: gr.HTML
    mailbox: gr.HTML
    checks: gr.HTML
    shelf: gr.HTML
    forgetting: gr.HTML
    switch: gr.HTML

    @property
    def is_demo(self) -> bool:
        """Whether the app started with the demo's model."""
        return base_name(self.backend.engine.info) == DEMO_NAME

    @property
    def of_columns(self) -> list[gr.HTML]:
        """The parts that change with who answers in a column."""
        return [self.transcript, self.routing, self.drift, self.shelf, self.forgetting]

    def column_updates(self, session: Session) -> dict[gr.HTML, Any]:
        """These parts as they are now."""
        return {
            self.transcript: transcript(session, self.backend),
            self.routing: routing_view(session, self.backend),
            self.drift: drift_view(session, self.backend),
            self.shelf: shelf_view(session, self.backend),
            self.forgetting: self.stored(session),
        }

    def stored(self, session: Session) -> dict[str, Any]:
        """What is stored on forgetting. Of a base that came later nothing is."""
        first = self.backend.is_first
        return forgetting.shown(self.results if first else None, session, first and not self.config.base)


def build(backend: Backend, config: Config, results: dict[str, Any] | None = None) -> gr.Blocks:
    """The whole interface.

    Args:
        backend: the model.
        config: limits and the like.
        results: what is stored on forgetting; None where there is nothing.
    """
    empty, info = Session(), backend.engine.info
    with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        page = Page(
            backend=backend,
            config=config,
            results=results,
            uploads=Uploads(),
            session=gr.State(Session(), delete_callback=lambda session: _gone(session, backend)),
            status=canvas("status", "Ready.", render=False),
            transcript=canvas(
                "transcript",
                transcript(empty, backend),
                ("stop_one", "retry_one", "edit_turn", "change_column", "set_gate"),
                render=False,
            ),
            meter=canvas("meter", None, ("peek",), render=False),
            routing=canvas("routing", routing_view(empty, backend), ("choose", "pick"), render=False),
            detail=canvas("detail", None, render=False),
            drift=canvas("drift", drift_view(empty, backend), render=False),
            mailbox=canvas("mailbox", None, render=False),
            checks=canvas("checks", untouched(), render=False),
            shelf=canvas("shelf", shelf_view(empty, backend), ("remove",), render=False),
            forgetting=canvas("forgetting", forgetting.shown(results, empty, not config.base), render=False),
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
        with gr.Tabs(elem_id="slim-tabs") as tabs:
            with gr.Tab("Compare", id="compare"):
                compare.build(page, demo)
            with gr.Tab("Adapters", id="adapters") as of_adapters:
                adapters.build(page, tabs)
            with gr.Tab("Routing", id="routing") as of_routing:
                routing.build(page)
            with gr.Tab("Drift", id="drift") as of_drift:
                drift.build(page)
            with gr.Tab("Forgetting", id="forgetting") as of_forgetting:
                page.forgetting.render()
            with gr.Tab("Model", id="model"):
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
        add_api(backend, config)

        def left(request: gr.Request) -> None:
            """A visitor closed the page: what they brought goes. The conversation is kept for an hour."""
            page.uploads.drop(str(request.session_hash))
            backend.own.leave(str(request.session_hash))

        demo.unload(left)
    # With "auto" Gradio tells all who wait of each start, in the loop that starts their events: somebody who has just
    # left raises a KeyError there, which ends the loop, and nobody is answered any more. A rate is told elsewhere.
    demo.queue(
        max_size=config.queue_size, default_concurrency_limit=config.concurrency, status_update_rate=STATUS_SECONDS
    )
    return demo


def launch(demo: gr.Blocks, config: Config, **options: Any) -> Any:
    """Serve it. Nothing is loaded from elsewhere, nothing is reported anywhere.

    Raises:
        ConfigError: if nothing can be served at that address.
    """
    try:
        socket.create_server((config.host, config.port)).close()
    except OSError as error:
        why = reason(error).split(" (")[0]
        raise ConfigError(
            f"The app cannot be served at {config.host}, port {config.port} ({why}); choose others with SLIM_HOST and "
            "SLIM_PORT."
        ) from None
    return demo.launch(
        server_name=config.host,
        server_port=config.port,
        auth=config.auth,
        theme=theme(),
        css_paths=[ASSETS / "webui" / f"{name}.css" for name in STYLES],
        head=head(),
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        share=False,
        show_error=False,
        max_file_size=config.max_upload,
        # Conversations that are kept; the oldest goes. Each holds the routing of its answers.
        state_session_capacity=config.sessions,
        footer_links=["api", "gradio", "settings"],
        **options,
    )


def head() -> str:
    """Our scripts, in the page itself."""
    scripts = "".join((ASSETS / "webui" / f"{name}.js").read_text(encoding="utf-8") + "\n" for name in SCRIPTS)
    description = f'<meta name="description" content="{escape(LEAD)}">'
    return f"{description}<script>{scripts}</script>"


def theme() -> gr.themes.Base:
    """Calm greys, system fonts, one accent."""
    found = gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Consolas", "monospace"],
        radius_size="md",
    )
    # One shade darker than Gradio's own: white on it can be read by everyone.
    return found.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_cancel_background_fill="#b42318",
        button_cancel_background_fill_hover="#912018",
        button_cancel_background_fill_dark="#b42318",
        button_cancel_background_fill_hover_dark="#912018",
        color_accent="*primary_700",
        block_info_text_color="*neutral_600",
    )


def _gone(session: Session, backend: Backend) -> None:
    if session.run is not None:
        session.run.stop()
    backend.own.leave(session.owner)
