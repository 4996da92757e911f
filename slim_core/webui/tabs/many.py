# SPDX-License-Identifier: Apache-2.0
"""The Many prompts tab: a list of prompts, a table that fills row by row, and the table as a file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ...inference import EngineError
from ...many import KINDS, read_lines, read_prompt_file, to_csv, to_json
from ..components import canvas, fixed
from ..limits import LimitError
from ..notices import Updates, notice, warn
from ..page import Page
from ..state.columns import columns
from ..state.prompt_list import PromptList
from ..state.session import Session
from ..wire import prompt_list as wire
from ..wire.background import ticks
from . import settings


LEAD = (
    "One after another, each answered by every column as under Compare, with its settings, adapters and gates. Other "
    "visitors are answered between them. At most {most}; nothing is kept when you close the page."
)
BOX = "the box"
FORGOTTEN = "The app was restarted and has forgotten this page. Reload it, then run the list."
# Pixels: of the numbers, the prompts, an answer, and of what is known of one.
NUMBER, PROMPT, ANSWER = 44, 180, 175
KNOWN = {": drift": 150, ": identity": 110, ": verdict": 140}


def build(page: Page, tab: gr.Tab) -> None:
    """Build the tab's layout and connect its events."""
    listed = gr.State(PromptList(), delete_callback=PromptList.leave)
    empty = Session()
    fixed(
        '<div class="slim-lead"><h2>Many prompts</h2><p>{{lead}}</p></div>',
        lead=LEAD.format(most=page.config.max_prompts),
    )
    box = gr.Textbox(
        label="Prompts, one per line",
        placeholder="Name the largest bird.\nWhat is the capital of France?",
        lines=5,
        max_lines=14,
        elem_id="slim-many-box",
    )
    with gr.Row(elem_id="slim-many-actions"):
        run = gr.Button("Run", variant="primary", min_width=110, elem_id="slim-many-run")
        stop = gr.Button("Stop", variant="stop", min_width=110, visible=False, elem_id="slim-many-stop")
        send = gr.UploadButton(
            "Use a file", size="sm", min_width=110, file_types=[*KINDS], file_count="single", elem_id="slim-many-send"
        )
        drop = gr.Button("Use the box", size="sm", min_width=110, visible=False, elem_id="slim-many-drop")
        as_csv = gr.Button("Export table as CSV", size="sm", min_width=110, interactive=False, elem_id="slim-many-csv")
        as_json = gr.Button(
            "Export table as JSON", size="sm", min_width=110, interactive=False, elem_id="slim-many-json"
        )
    fixed(
        '<p class="slim-note">{{kinds}}</p>',
        kinds="A file is .txt with one prompt per line, .csv with a column “prompt”, or .json or .jsonl with texts, "
        "{“prompt”: …} or {“messages”: …}.",
    )
    progress = canvas("many", wire.tab_view(PromptList()))
    loaded = list(columns(empty, page.backend).values())
    table = gr.Dataframe(
        value=[],
        headers=wire.headers(loaded),
        datatype="str",
        interactive=False,
        wrap=True,
        max_height=640,
        column_widths=widths(wire.headers(loaded)),
        label="Answers",
        show_label=False,
        visible=False,
        elem_id="slim-many-table",
    )
    handlers = ManyHandlers(page, listed, box, progress, table, run, stop, send, drop, (as_csv, as_json))
    private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    # Gradio shows warnings of queued events only; these never wait for the model.
    light = private | {"concurrency_id": "light", "concurrency_limit": None}
    work = private | {"concurrency_id": "many", "concurrency_limit": None, "trigger_mode": "multiple"}
    of_page = [page.session, listed]
    run.click(handlers.run, [*of_page, box, *page.settings], handlers.outputs_of_run, **work)
    stop.click(handlers.stop, [listed], [progress], queue=False, **private)
    send.upload(handlers.take, [*of_page, send], handlers.outputs, **light)
    drop.click(handlers.drop, [listed], handlers.outputs, **light)
    as_csv.click(handlers.csv, [listed], [page.mailbox], **light)
    as_json.click(handlers.json, [listed], [page.mailbox], **light)
    # Columns may have changed, and what came while the tab was closed did not reach it.
    tab.select(handlers.frame, of_page, handlers.outputs, queue=False, **private)


def widths(headers: Sequence[str]) -> list[str | int]:
    """Of the table's columns."""
    of_answers = (next((KNOWN[end] for end in KNOWN if header.endswith(end)), ANSWER) for header in headers[2:])
    sizes = [NUMBER, PROMPT, *of_answers]
    return [f"{size}px" for size in sizes]


class ManyHandlers:
    """The tab's events. Each checks everything that the browser sends.

    Args:
        page: the parts that all tabs share.
        listed: the others are this tab's own components.
    """

    def __init__(self, page: Page, listed: gr.State, box, progress, table, run, stop, send, drop, exports) -> None:
        self.page, self.backend = page, page.backend
        self.lists = wire.Lists(page.backend)
        self.progress, self.table = progress, table
        self.run_button, self.stop_button, self.send, self.drop_button, self.exports = run, stop, send, drop, exports
        self.listed, self.box = listed, box
        self.outputs = [progress, table, page.status, page.mailbox, run, stop, send, drop, box, *exports]
        # The state too: Gradio deletes only one that was an output once.
        self.outputs_of_run = [*self.outputs, listed]

    def run(self, session: Session, listed: PromptList, text: Any, *values: Any) -> Iterator[Updates]:
        """Ask what is in the box or in the file, and show a row for each answer."""
        try:
            if not session.opened:
                raise LimitError(FORGOTTEN)
            if session.generation != self.backend.generation:
                raise LimitError("The base model has just been changed. Run the list again in a moment.")
            for sentence in (sentences := self.backend.visitor_adapters.drop_missing(session)):
                notice(sentence, "An adapter is gone")
            if sentences:
                return
            chosen = settings.check(dict(zip(settings.NAMES, values, strict=True)), self.page.config.max_new_tokens)
            prompts = self._prompts(listed, text)
            run = self.lists.start(
                session, listed, prompts, chosen.sampling, chosen.system, batched=not chosen.one_at_a_time
            )
        except (LimitError, EngineError) as error:
            yield warn(error)
            return
        yield self.frame(session, listed) | {self.page.status: wire.status(run), self.listed: listed}
        for rows in ticks(run):
            updates: Updates = {self.progress: wire.tab_view(listed)}
            if rows:
                updates[self.table] = self._table(session, listed)
            yield updates
        yield self.frame(session, listed) | {self.page.status: wire.status(run)}

    def _prompts(self, listed: PromptList, text: Any) -> Sequence:
        if listed.file is not None:
            return listed.file[1]
        if not isinstance(text, str):
            raise LimitError("The prompts must be text.")
        if not text.strip():
            raise LimitError("Write the prompts first, one per line, or send a file of them.")
        return wire.checked(read_lines(text, BOX, self.page.config.max_prompts))

    def stop(self, listed: PromptList) -> dict[str, object]:
        """End the list; what is answered stays."""
        if listed.run is not None:
            listed.run.stop()
        return wire.tab_view(listed)

    def take(self, session: Session, listed: PromptList, path: Any, request: gr.Request) -> Updates:
        """A file in place of the box. It is read, then deleted at once."""
        if not isinstance(path, str):
            return warn(LimitError("Choose a file first."))
        with self.page.uploads.reading(str(request.session_hash), [path]):
            try:
                prompts = wire.checked(read_prompt_file(Path(path), self.page.config.max_prompts))
            except (LimitError, EngineError) as error:
                return warn(error)
        listed.file = (Path(path).name, prompts)
        return self.frame(session, listed)

    def drop(self, listed: PromptList) -> Updates:
        """The box in place of the file."""
        listed.file = None
        return {self.progress: wire.tab_view(listed)} | self._of_file(listed)

    def csv(self, listed: PromptList) -> dict[str, Any]:
        """The table as CSV."""
        run = listed.run
        if run is None or not run.results:
            return warn(LimitError("There is nothing to export yet."))
        text = to_csv(tuple(run.results), run.askers)
        return self._letter("slim-prompts.csv", text, "text/csv;charset=utf-8", "The table is saved as CSV.")

    def json(self, listed: PromptList) -> dict[str, Any]:
        """The table as JSON."""
        run = listed.run
        if run is None or not run.results:
            return warn(LimitError("There is nothing to export yet."))
        text = to_json(tuple(run.results), len(run.prompts), run.base, run.askers, run.sampling)
        return self._letter("slim-prompts.json", text, "application/json", "The table is saved as JSON.")

    def frame(self, session: Session, listed: PromptList) -> Updates:
        """The current state of the tab."""
        running = listed.running
        has_results = listed.run is not None and bool(listed.run.results)
        return {
            self.progress: wire.tab_view(listed),
            self.table: self._table(session, listed),
            self.run_button: gr.Button(visible=not running),
            self.stop_button: gr.Button(visible=running),
            self.send: gr.UploadButton(interactive=not running),
            **{button: gr.Button(interactive=has_results and not running) for button in self.exports},
        } | self._of_file(listed)

    def _table(self, session: Session, listed: PromptList) -> gr.Dataframe:
        value = wire.table(listed, list(columns(session, self.backend).values()))
        # Without rows it would be a part that scrolls and that no key can reach.
        return gr.Dataframe(value=value, column_widths=widths(value["headers"]), visible=bool(value["data"]))

    def _of_file(self, listed: PromptList) -> Updates:
        has_file = listed.file is not None
        return {self.drop_button: gr.Button(visible=has_file), self.box: gr.Textbox(interactive=not has_file)}

    @staticmethod
    def _letter(name: str, text: str, mime: str, sentence: str) -> dict[str, Any]:
        # With the number, the same file is sent again if it is asked for twice.
        return {"kind": "save", "number": time.time_ns(), "name": name, "text": text, "mime": mime, "said": sentence}
