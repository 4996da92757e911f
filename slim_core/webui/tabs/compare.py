# SPDX-License-Identifier: Apache-2.0
"""The Compare tab: prompt, columns, settings."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from ..components import canvas
from ..page import Page
from . import own_model, settings, tryout
from .examples import gallery
from .handlers import Controls, Handlers
from .page_load import PageLoad
from .voting import Voting


# Fixed, so that a browser's settings survive a restart of the server. They are not secret.
STORE, STORE_KEY = "slim-compare-settings", "not a secret: settings only"
VIEWS = [("Answers", "plain"), ("Differences from base", "differences"), ("Coloured by routing", "routing")]


def build(page: Page, tab: gr.Tab) -> None:
    """Build the tab's layout and connect its events; sets `page.settings` and `page.connect_examples`."""
    longest = page.config.max_new_tokens
    page.transcript.render()
    with gr.Row(elem_id="slim-composer", equal_height=False):
        with gr.Column(scale=8, min_width=0, elem_id="slim-typing"):
            prompt = gr.Textbox(
                label="Prompt",
                show_label=False,
                placeholder="Ask all of them…",
                lines=1,
                max_lines=8,
                autofocus=True,
                container=False,
                elem_id="slim-prompt",
            )
            page.meter.render()
        send = gr.Button("Compare", variant="primary", scale=1, min_width=120, elem_id="slim-send")
        stop = gr.Button("Stop all", variant="stop", scale=1, min_width=120, visible=False, elem_id="slim-stop-all")
    with gr.Row(elem_id="slim-actions"):
        retry = gr.Button("Retry all", size="sm", visible=False, min_width=90, elem_id="slim-retry")
        undo = gr.Button("Undo", size="sm", visible=False, min_width=90, elem_id="slim-undo")
        new = gr.Button("New conversation", size="sm", visible=False, min_width=140, elem_id="slim-new")
        view = gr.Radio(
            VIEWS, value="plain", show_label=False, label="Show", container=False, visible=False, elem_id="slim-view"
        )
    page.headline.render()
    examples = tryout.build("slim-ex", gallery(page.is_demo))
    canvas("own", own_model.card())
    with gr.Accordion("Settings: sampling and system prompt", open=False, elem_id="slim-settings"):
        fields = settings.components(longest)
        hide = gr.Checkbox(
            False,
            label="Hide who answers",
            info="a blind vote: the answers appear in random order without names until you have chosen the best",
            elem_id="slim-hide",
        )
    with gr.Row(elem_id="slim-files"):
        link = gr.Button("Copy link", size="sm", min_width=110, elem_id="slim-link")
        export = gr.Button("Export JSON", size="sm", min_width=110, visible=False, elem_id="slim-export")
        load = gr.UploadButton(
            "Import JSON", size="sm", min_width=110, file_types=[".json"], file_count="single", elem_id="slim-import"
        )
    saved = gr.BrowserState(None, storage_key=STORE, secret=STORE_KEY)

    handlers = Handlers(page, Controls(prompt, fields, send, stop, retry, undo, new, view, export, hide))
    page_load, voting = PageLoad(handlers), Voting(handlers)
    values = list(fields.values())
    # With `hide` too: a server that has forgotten the visitor does not know whether names are hidden.
    asked = [*values, hide]
    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    # Gradio shows warnings of queued events only; these never wait for the model.
    light = quick | {"queue": True, "concurrency_id": "light", "concurrency_limit": None}
    # Each waits in the model's own queue, which knows its place; Gradio's queue does not.
    work: dict[str, Any] = {
        "concurrency_id": "model",
        "concurrency_limit": None,
        "show_progress": "hidden",
        "api_visibility": "private",
        # A second click while answers are being written gets a sentence rather than silence.
        "trigger_mode": "multiple",
        "outputs": handlers.outputs,
    }
    # The prompt is sent before its box is emptied. If it never arrives, it is put back.
    take = "(session, prompt, ...values) => [session, slim.prompt.take(prompt), ...values]"
    sent = gr.on([prompt.submit, send.click], handlers.submit, [page.session, prompt, *asked], js=take, **work)
    sent.failure(None, js="() => slim.prompt.back()", api_visibility="private")

    def connect(buttons: tryout.Buttons) -> None:
        for button, text in buttons:
            button.click(handlers.example(text), [page.session, *asked], **work)

    connect(examples)
    page.headline.open(lambda: gr.Tabs(selected="forgetting"), None, [page.tabs], **quick)
    retry.click(handlers.retry, [page.session, *asked], **work)
    page.transcript.retry_one(handlers.retry_one, [page.session, *asked], **work)
    page.transcript.set_gate(handlers.set_gate, [page.session, *asked], **work)
    system = fields["system"]
    page.meter.peek(handlers.peek, [page.session, system], [page.meter], trigger_mode="multiple", **quick)
    reread = "() => { dispatchEvent(new Event('slim-reread')); }"
    system.change(None, None, None, js=reread, api_visibility="private")  # type: ignore[attr-defined]
    page.transcript.edit_turn(handlers.edit, [page.session, *asked], **work)
    page.transcript.vote(voting.vote, [page.session, hide], handlers.outputs, **light)
    hide.input(voting.hide, [page.session, hide], handlers.outputs, **light)
    page.transcript.stop_one(handlers.stop_one, [page.session], None, **quick)
    stop.click(handlers.stop_all, [page.session], None, **quick)
    undo.click(handlers.undo, [page.session], handlers.outputs, **light)
    new.click(handlers.new, [page.session], handlers.outputs, **light)
    view.input(handlers.show, [page.session, view], [page.transcript], **quick)
    link.click(handlers.link, [page.session, prompt, *values], [page.mailbox], **light)
    export.click(handlers.export, [page.session], [page.mailbox], **light)
    load.upload(handlers.load_file, [page.session, load], handlers.outputs, **light)
    named = "Object.fromEntries(" + _js(list(settings.NAMES)) + ".map((name, i) => [name, values[i]]))"
    keep = f"(old, ...values) => slim.chose ? {named} : old"
    # Gradio declares events on each kind of field, but not on `Component`.
    changes = [field.change for field in values]  # type: ignore[attr-defined]
    gr.on(changes, None, [saved, *values], [saved], js=keep, api_visibility="private")
    page.keeper.restore(page_load.restore, [page.session], **work)
    page.keeper.go_on(page_load.go_on, [page.session], **work)
    show = "async (session, saved) => [session, saved, await slim.tab.ticket()]"
    page.demo.load(page_load.open, [page.session, saved, page.keeper], page_load.outputs, js=show, **light)
    page.settings, page.connect_examples = values, connect


def _js(value: object) -> str:
    return json.dumps(value).replace("<", "\\u003c")
