# SPDX-License-Identifier: Apache-2.0
"""The Adapters tab: a visitor adds an adapter, watches its checks, and can remove it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ...adapters import Folder, HubRepository, Limits, Source, Upload, UploadedFile
from ...outside.files import CONFIG, WEIGHTS, adapters_in
from ...outside.record import RECORD
from ..components import fixed
from ..limits import LimitError, check_text
from ..notices import Updates, notice, warn
from ..page import Page
from ..state.columns import ADAPTERS
from ..state.session import Session
from ..state.wizard import Wizard, untouched
from ..words import size


HUB = "https://huggingface.co/"
LEAD = (
    "Put your own adapter beside the base model: a LoRA, SLIM, or another method that this project can train. It is "
    "only read, never run, and checked before it is used. Nobody else sees it, and it is deleted a minute after you "
    "close the page."
)
# Checks read a whole file each; more at once would only wait for the disk and the processor.
CHECKS_AT_ONCE = 8


def build(page: Page, tab: gr.Tab) -> None:
    """Build the tab's layout and connect its events."""
    fixed('<div class="slim-lead"><h2>Bring your own adapter</h2><p>{{lead}}</p></div>', lead=LEAD)
    with gr.Row(equal_height=False, elem_id="slim-adapters"):
        with gr.Column(min_width=320):
            column = gr.Radio(
                [(title, name) for name, title in ADAPTERS.items()],
                value=next(iter(ADAPTERS)),
                label="Where it answers",
                elem_id="slim-column",
            )
            label = gr.Textbox(
                label="Its name", placeholder="default: the name of its folder", max_length=60, elem_id="slim-own-name"
            )
            with gr.Tabs(elem_id="slim-sources"):
                with gr.Tab("Files", id="files"):
                    files = gr.File(
                        label=f"Its files, {size(page.config.max_upload)} each at most",
                        file_count="multiple",
                        height=150,
                        elem_id="slim-own-files",
                    )
                    fixed(
                        '<p class="slim-note">{{one}} and {{two}}, in any order, and {{record}} if there is one. '
                        "Other files are ignored.</p>",
                        one=CONFIG,
                        two=WEIGHTS,
                        record=RECORD,
                    )
                    # Gradio's own way leaves an empty temporary file behind for each upload.
                    files.preprocess = lambda payload: [file.path for file in payload or ()]  # type: ignore[method-assign, union-attr]
                    upload = gr.Button("Check and use these files", variant="primary", elem_id="slim-use-files")
                with gr.Tab("Hugging Face", id="hub"):
                    repository = gr.Textbox(
                        label="Id on the Hub", placeholder="owner/name", max_length=300, elem_id="slim-own-id"
                    )
                    revision = gr.Textbox(
                        label="Version", placeholder="main", max_length=200, elem_id="slim-own-revision"
                    )
                    fetch = gr.Button("Check and use it", variant="primary", elem_id="slim-use-hub")
                if page.config.adapters:
                    with gr.Tab("On this machine", id="folder"):
                        folder = gr.Dropdown(
                            adapters_in(page.config.adapters), label="Folder", value=None, elem_id="slim-own-folder"
                        )
                        choose = gr.Button("Check and use it", variant="primary", elem_id="slim-use-folder")
        with gr.Column(min_width=320):
            page.checks.render()
            page.shelf.render()
    handlers = AdapterHandlers(page, files, label)
    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    work: dict[str, Any] = {
        "concurrency_id": "adapters",
        "concurrency_limit": CHECKS_AT_ONCE,
        "show_progress": "hidden",
        "api_visibility": "private",
        "trigger_mode": "multiple",
    }
    files.upload(handlers.note, [files], None, **quick)
    outputs = handlers.outputs
    upload.click(handlers.use_files, [page.session, column, label, files], [*outputs, files], **work)
    fetch.click(handlers.use_hub, [page.session, column, label, repository, revision], outputs, **work)
    if page.config.adapters:
        choose.click(handlers.use_folder, [page.session, column, label, folder], outputs, **work)
    page.shelf.remove(handlers.remove, [page.session], outputs, **quick)
    page.transcript.change_column(handlers.change_column, None, [page.tabs, column], **quick)


class AdapterHandlers:
    """The tab's events. Each checks everything that the browser sends.

    Args:
        page: the parts that all tabs share.
        files: this and the next are the tab's own components.
    """

    def __init__(self, page: Page, files: gr.File, label: gr.Textbox) -> None:
        self.page, self.visitor_adapters, self.files, self.label = page, page.backend.visitor_adapters, files, label
        self.limits = Limits(weights_bytes=page.config.max_upload)
        self.outputs = [page.checks, *page.of_columns, label]

    def note(self, paths: Any, request: gr.Request) -> None:
        """Files were uploaded; they are deleted if the visitor leaves before they are checked."""
        self.page.uploads.note(str(request.session_hash), paths)

    def use_files(self, session: Session, column: Any, label: Any, paths: Any) -> Iterator[Updates]:
        """Check uploaded files. They are deleted afterwards, whatever the result."""
        if not paths:
            yield warn(LimitError(f"Choose the files first: {CONFIG} and {WEIGHTS}."))
            return
        with self.page.uploads.reading(session.page, paths):
            # At once, so that files that are chosen while these are checked stay.
            yield {self.files: None}
            source = Upload(tuple(UploadedFile(Path(path).name, Path(path)) for path in paths))
            yield from self._use(session, column, label, source)

    def use_hub(self, session: Session, column: Any, label: Any, repository: Any, revision: Any) -> Iterator[Updates]:
        """Fetch an adapter from the Hub, without any token."""
        try:
            name = check_text(repository, "The id").strip().removeprefix(HUB).strip("/")
            version = check_text(revision or "", "The version").strip() or None
            if not name:
                raise LimitError("Write the adapter's id first, such as owner/name.")
        except LimitError as error:
            yield warn(error)
            return
        yield from self._use(session, column, label, HubRepository(name, version))

    def use_folder(self, session: Session, column: Any, label: Any, folder: Any) -> Iterator[Updates]:
        """Use one of the folders that the operator offers."""
        root = self.page.config.adapters
        if folder not in adapters_in(root):
            yield warn(LimitError("Choose a folder first."))
            return
        yield from self._use(session, column, label, Folder(Path(root) / folder))

    def _use(self, session: Session, column: Any, label: Any, source: Source) -> Iterator[Updates]:
        """Check a source and put it into a column; on failure the column stays as it is."""
        try:
            if not session.owner:
                # If a program called this without opening the page, we would not notice when it leaves.
                raise LimitError("Open the page before you bring an adapter.")
            if column not in ADAPTERS:
                raise LimitError("Choose a column first.")
            name = check_text(label or "", "The name").strip() or None
            if not session.begin_check():
                raise LimitError("Another adapter is still being checked; wait until that has ended.")
        except LimitError as error:
            yield warn(error)
            return
        checking = True
        try:
            wizard = Wizard(self.visitor_adapters, session.owner, source, name, self.limits)
            for _ in wizard.run():
                view = wizard.view()
                if checking and view["ended"] and wizard.variant is None:
                    # Before the failure becomes visible: the visitor may start again at once.
                    session.end_check()
                    checking = False
                yield {self.page.checks: view}
            if wizard.variant is not None:
                previous = session.own_variants.get(column)
                session.own_variants = session.own_variants | {column: wizard.variant}
                if previous is not None:
                    self.visitor_adapters.remove(previous.name)
                yield self._frame(session) | {self.label: ""}
        finally:
            if checking:
                session.end_check()

    def remove(self, session: Session, event: gr.EventData) -> Updates:
        """Remove the visitor's adapter; the app's own returns."""
        column = event._data.get("column")
        variant = session.own_variants.get(column) if isinstance(column, str) else None
        if variant is None:
            return gr.skip()
        session.own_variants = {name: other for name, other in session.own_variants.items() if name != column}
        self.visitor_adapters.remove(variant.name)
        return self._frame(session) | {self.page.checks: untouched()}

    def change_column(self, event: gr.EventData) -> list[Any]:
        """Open this tab from the head of a column."""
        column = event._data.get("column")
        return [gr.Tabs(selected="adapters"), column if column in ADAPTERS else gr.skip()]

    def _frame(self, session: Session) -> Updates:
        for sentence in self.visitor_adapters.drop_missing(session):
            notice(sentence, "An adapter is gone")
        return self.page.column_updates(session)
