# SPDX-License-Identifier: Apache-2.0
"""The Model tab: the loaded base, its memory, and switching to another one."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ...base.formatting import count, size
from ...base.loading import need_sentence
from ...inference import EngineError, Progress
from ..backend import Backend
from ..components import canvas, fixed
from ..limits import LimitError
from ..notices import warn
from ..page import Page
from ..state.choices import PRECISIONS
from ..state.session import Session
from ..words import base_name


TEMPLATES = {True: "the tokenizer's own", False: "none of its own: ### Instruction, ### Response, as in Alpaca"}
STAGES = {
    "checking": "looking at its size",
    "fetching": "fetching its files",
    "ending": "ending the answers that are being written",
    "loading": "loading its weights",
}
EVERYONE = (
    "All visitors share one base. While another one is being loaded nobody gets an answer: answers that are being "
    "written end, and conversations and adapters are cleared. The old base stays until the new one's files have "
    "arrived."
)


def build(page: Page, tab: gr.Tab) -> None:
    """Build the tab's layout and connect its events."""
    backend, choices = page.backend, page.backend.choices
    changeable = not choices.fixed
    names = list(choices.bases) or [base_name(backend.engine.info)]
    with gr.Row(equal_height=False, elem_id="slim-models"):
        with gr.Column(min_width=320):
            facts = canvas("loaded", facts_of(backend))
        with gr.Column(min_width=320, visible=changeable):
            fixed("<h2>{{title}}</h2>", title="Another base")
            base = gr.Dropdown(
                names,
                value=names[0],
                label="Base model",
                info="or a Hub id: owner/name" if choices.any_id else None,
                allow_custom_value=choices.any_id,
                elem_id="slim-base",
            )
            revision = gr.Textbox(
                label="Revision of the Hub id",
                placeholder="main",
                visible=choices.any_id,
                max_lines=1,
                elem_id="slim-revision",
            )
            precision = gr.Radio(
                list(PRECISIONS),
                value=precision_of(backend),
                label="Precision of its Linears",
                elem_id="slim-precision",
            )
            fixed('<p class="slim-note">{{note}}</p>', note=EVERYONE)
            with gr.Row():
                estimate = gr.Button("Estimate", size="sm", min_width=100, elem_id="slim-estimate")
                load = gr.Button("Load", variant="primary", size="sm", min_width=100, elem_id="slim-load")
                stop = gr.Button("Stop loading", size="sm", min_width=100, elem_id="slim-stop-load")
            need = canvas("need", "")
    if choices.fixed:
        fixed('<p class="slim-note">{{note}}</p>', "slim-fixed", note=choices.fixed)
    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    gr.Timer(10).tick(lambda: facts_of(backend), None, facts, **quick)
    switch = backend.switch
    if not changeable or switch is None:
        return

    light = quick | {"queue": True, "concurrency_id": "light", "concurrency_limit": None}
    fields = [base, revision, precision]
    shown = [page.switch, *page.of_columns, page.detail, facts]

    def ask(*values: Any) -> Any:
        """What the chosen base would take."""
        try:
            choice = choices.find(*values)
            return f"{choice.label} needs {need_sentence(switch.need(choice))}. It fits."
        except (LimitError, EngineError) as error:
            return str(error)

    def begin(*values: Any) -> Any:
        """Load the chosen base."""
        try:
            switch.start(choices.find(*values))
        except (LimitError, EngineError) as error:
            return warn(error)
        return banner(backend)

    def look(session: Session) -> Any:
        """How far switching to another base has got; everything once there is another base."""
        # Sent each time: answers of the server may overtake each other, and the last one must be true.
        updates: dict[Any, Any] = {page.switch: banner(backend)}
        if session.run is None and session.renew(backend.generation):
            # The banner says why they are gone.
            backend.visitor_adapters.drop_missing(session)
            updates |= page.column_updates(session) | {page.detail: None, facts: facts_of(backend)}
        return updates

    def arrive(session: Session) -> Any:
        """The page may have been built for another base. The columns come with the settings."""
        session.renew(backend.generation)
        updates = page.column_updates(session) | {page.switch: banner(backend), facts: facts_of(backend)}
        return {component: value for component, value in updates.items() if component is not page.transcript}

    estimate.click(ask, fields, need, **light)
    load.click(begin, fields, page.switch, **light)
    stop.click(switch.stop, None, None, **quick)
    page.clock.tick(look, [page.session], shown, **quick)
    page.demo.load(arrive, [page.session], shown, **quick)


def banner(backend: Backend) -> dict[str, Any]:
    """How far switching to another base has got, and what the header says."""
    progress = backend.switch.progress if backend.switch is not None else None
    info = backend.engine.info
    return {
        "model": f"{base_name(info)} · {info.dtype} · {info.device}",
        "line": line(progress),
        "amount": amount(progress),
        "done": progress.done if progress else 0,
        "total": progress.total if progress else 0,
        "sentence": progress.sentence if progress else "",
        "failed": progress is not None and progress.stage == "failed",
    }


def line(progress: Progress | None) -> str:
    """What is happening, in a few words that change only with the stage: they are read aloud."""
    if progress is None or progress.ended:
        return ""
    return f"{progress.label}: {STAGES[progress.stage]}."


def amount(progress: Progress | None) -> str:
    """How much of it is done."""
    if progress is None or progress.ended or not progress.total:
        return ""
    if progress.stage == "fetching":
        return f"{size(progress.done)} of {size(progress.total)}"
    return f"{progress.done:,} of {progress.total:,} weights"


def precision_of(backend: Backend) -> str:
    """The name in `PRECISIONS` of what is loaded."""
    return next((name for name in PRECISIONS if backend.engine.info.dtype.startswith(name)), "As it is")


def facts_of(backend: Backend) -> list[dict[str, Any]]:
    """Tables of what is loaded, and of its memory."""
    info = backend.engine.info
    model = [
        ["Base", base_name(info)],
        ["Size", f"{count(info.parameters)} parameters, {info.blocks} layers"],
        ["Precision", info.dtype],
        ["Device", info.device],
        ["Reads at most", f"{info.context_length:,} tokens"],
        ["Chat template", TEMPLATES[info.chat_template]],
        *[
            [v.label, f"{count(v.parameters)} parameters" + (f", {v.detail}" if v.detail else "")]
            for v in backend.adapters
        ],
    ]
    return [{"title": "The model", "rows": model}, memory_of(backend)]


def memory_of(backend: Backend) -> dict[str, Any]:
    """A table of who takes how much memory, and of what is free."""
    visitors, visitor_bytes = backend.visitor_adapters.size()
    total = visitor_bytes + sum(v.bytes for v in backend.variants)
    use = [[v.label, f"{size(v.bytes)}, {v.bytes / total:.1%}"] for v in backend.variants]
    if visitors:
        use.append(["Visitors’ adapters", f"{visitors}: {size(visitor_bytes)}, {visitor_bytes / total:.1%}"])
    # On ZeroGPU there is no GPU between two calls, and asking for its memory would be an error.
    memory = None if backend.zero_gpu else backend.engine.memory()
    if memory is not None and memory.kept:
        use.append(["Kept for next turns", size(memory.kept)])
    if memory is not None and memory.free is not None and memory.total is not None:
        use.append(["Free", f"{size(memory.free)} of {size(memory.total)}"])
    return {"title": "Memory", "rows": use}
