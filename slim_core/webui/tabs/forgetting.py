# SPDX-License-Identifier: Apache-2.0
"""The Forgetting tab: stored results, and an evaluation of the variants in the visitor's columns."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ...evaluation.report import report_page
from ...evaluation.results import Evaluation, to_json
from ...inference import EngineError
from ..components import canvas, fixed
from ..limits import LimitError, Range
from ..notices import Updates, notice, warn
from ..page import Page
from ..state.evaluation_run import VisitorEvaluation
from ..state.offered_tasks import OfferedTasks
from ..state.session import Session
from ..wire import evaluation as wire
from ..wire.background import ticks
from ..wire.own_questions import ENDING, EXAMPLE, of_kind, read_own_questions, summary


TITLE = "Measure the variants in your columns, including your own adapters"
LEAD = (
    "Base, LoRA and SLIM, or your own adapters in their columns, answer the same questions, with their gates as you "
    "have set them. Other visitors are answered between them; nothing is kept when you close the page."
)
FORGOTTEN = "The app was restarted and has forgotten this page. Reload it, then start the evaluation."
OWN = (
    f"You can add questions of your own: a {ENDING} file with one on each line, such as {EXAMPLE}, or with choices or "
    "rules. All of them are asked, and nobody else sees them."
)
QUESTIONS = 20  # of each task, where nobody changes it
# Seconds between two drawings of partial results.
AGAIN = 2.0


def build(page: Page, tab: gr.Tab) -> None:
    """Build the tab's layout and connect its events.

    Args:
        page: what the tabs share.
        tab: this one.
    """
    config = page.config
    offered = OfferedTasks(not config.base, Path(config.data_dir) if config.data_dir else None)
    state = gr.State(VisitorEvaluation(), delete_callback=VisitorEvaluation.leave)
    with gr.Accordion(TITLE, open=page.results is None, elem_id="slim-evaluation-form"):
        fixed('<p class="slim-note">{{lead}}</p>', lead=LEAD)
        groups = []
        for kind, title in wire.KINDS.items():
            tasks = [task for task in offered.tasks if task.kind == kind]
            groups.append(
                gr.CheckboxGroup(
                    choices=[(task.title, task.name) for task in tasks],
                    value=[task.name for task in tasks if task.chosen],
                    label=title,
                    visible=bool(tasks),
                )
            )
        limit = config.max_questions
        questions = gr.Slider(
            1,
            limit,
            value=min(QUESTIONS, limit),
            step=1,
            label="Questions of each task",
            elem_id="slim-evaluation-size",
        )
        fixed('<p class="slim-note">{{own}}</p>', own=OWN)
        with gr.Row(elem_id="slim-evaluation-files"):
            send = gr.UploadButton(
                "Add your own questions",
                size="sm",
                min_width=110,
                file_types=[ENDING],
                file_count="single",
                elem_id="slim-evaluation-send",
            )
            drop = gr.Button(
                "Remove your questions", size="sm", min_width=110, visible=False, elem_id="slim-evaluation-drop"
            )
        subject = gr.Radio(
            [(title, kind) for kind, title in wire.KINDS.items()],
            value="downstream",
            info="What are they about?",
            visible=False,
            elem_id="slim-evaluation-own",
        )
        with gr.Row(elem_id="slim-evaluation-actions"):
            run = gr.Button("Start the evaluation", variant="primary", min_width=110, elem_id="slim-evaluation-run")
            stop = gr.Button("Stop", variant="stop", min_width=110, visible=False, elem_id="slim-evaluation-stop")
            exports = [
                gr.Button(title, size="sm", min_width=110, interactive=False)
                for title in ("Save results as JSON", "Save report as HTML")
            ]
        view = canvas("evaluation", None)
    fixed('<div class="slim-lead"><h2>Stored results</h2></div>')
    page.forgetting.render()
    handlers = EvaluationHandlers(page, offered, state, view, run, stop, exports, subject, drop)
    private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    # Gradio shows warnings of queued events only; these never wait for the model.
    light = private | {"concurrency_id": "light", "concurrency_limit": None}
    work = private | {"concurrency_id": "evaluation", "concurrency_limit": None, "trigger_mode": "multiple"}
    run.click(handlers.run, [page.session, state, *groups, questions, subject], handlers.outputs_of_run, **work)
    stop.click(handlers.stop, [state], [view], queue=False, **private)
    send.upload(handlers.take, [state, send], handlers.outputs, **light)
    drop.click(handlers.drop, [state], handlers.outputs, **light)
    for button, save in zip(exports, (handlers.json, handlers.html), strict=True):
        button.click(save, [state], [page.mailbox], **light)
    # Updates do not reach a tab that is closed.
    tab.select(handlers.frame, [state], handlers.outputs, queue=False, **private)


class EvaluationHandlers:
    """The events of the evaluation. Each checks everything that the browser sends.

    Args:
        page: the parts that all tabs share.
        offered: the tasks that can be chosen.
        state: the others are this tab's own components.
    """

    def __init__(
        self, page: Page, offered: OfferedTasks, state: gr.State, view, run, stop, exports, subject, drop
    ) -> None:
        self.page, self.backend, self.offered = page, page.backend, offered
        self.evaluations = wire.Evaluations(page.backend)
        self.questions = Range("The number of questions", 1, page.config.max_questions, whole=True)
        self.state, self.view, self.run_button, self.stop_button, self.exports = state, view, run, stop, exports
        self.subject, self.drop_button = subject, drop
        self.outputs = [view, page.status, page.mailbox, run, stop, *exports, subject, drop]
        # The state too: Gradio deletes only one that was an output once.
        self.outputs_of_run = [*self.outputs, state]

    def run(self, session: Session, evaluation: VisitorEvaluation, *values: Any) -> Iterator[Updates]:
        """Evaluate the chosen tasks, and show the results while they come."""
        *chosen, questions, kind = values
        try:
            if not session.opened:
                raise LimitError(FORGOTTEN)
            if session.generation != self.backend.generation:
                raise LimitError("The base model has just been changed. Start the evaluation again in a moment.")
            for sentence in (sentences := self.backend.visitor_adapters.drop_missing(session)):
                notice(sentence, "An adapter is gone")
            if sentences:
                return
            names = [name for group in chosen for name in group or ()]
            number = int(self.questions.check(questions))
            tasks = [] if evaluation.questions is None else [of_kind(evaluation.questions, kind)]
            if names or not tasks:
                tasks = [*self.offered.load(self.offered.check(names), number), *tasks]
            run = self.evaluations.start(session, evaluation, tasks)
        except (LimitError, EngineError) as error:
            yield warn(error)
            return
        yield self.frame(evaluation) | {self.page.status: wire.status(run), self.state: evaluation}
        drawn, due = wire.tab_view(evaluation), time.monotonic() + AGAIN
        for _ in ticks(run):
            if time.monotonic() >= due:
                # Intervals take some time to compute, so that there are fewer drawings on a slower machine.
                begin = time.monotonic()
                drawn = wire.tab_view(evaluation)
                due = time.monotonic() + AGAIN + 10 * (time.monotonic() - begin)
            else:
                drawn = wire.progress(evaluation, drawn)
            yield {self.view: drawn}
        yield self.frame(evaluation) | {self.page.status: wire.status(run)}

    def stop(self, evaluation: VisitorEvaluation) -> Any:
        """End the evaluation; what is solved stays."""
        if evaluation.run is not None:
            evaluation.run.stop()
        return wire.tab_view(evaluation)

    def take(self, evaluation: VisitorEvaluation, path: Any, request: gr.Request) -> Updates:
        """A visitor's own questions. The file is read, then deleted at once."""
        if not isinstance(path, str):
            return warn(LimitError("Choose a file first."))
        with self.page.uploads.reading(str(request.session_hash), [path]):
            try:
                evaluation.questions = read_own_questions(Path(path), self.page.config.max_questions)
            except (LimitError, EngineError) as error:
                return warn(error)
        return self._of_file(evaluation) | {self.page.status: f"{self._file_label(evaluation)}."}

    def drop(self, evaluation: VisitorEvaluation) -> Updates:
        """Remove the visitor's own questions."""
        evaluation.questions = None
        return self._of_file(evaluation) | {self.page.status: "Your questions are removed."}

    def _of_file(self, evaluation: VisitorEvaluation) -> Updates:
        has_questions = evaluation.questions is not None
        return {
            self.subject: gr.Radio(label=self._file_label(evaluation), visible=has_questions),
            self.drop_button: gr.Button(visible=has_questions),
        }

    @staticmethod
    def _file_label(evaluation: VisitorEvaluation) -> str:
        questions = evaluation.questions
        return "" if questions is None else f"{questions.source}: {summary(questions)}"

    def json(self, evaluation: VisitorEvaluation) -> Updates:
        """The results as `evaluate` writes them."""
        results = self._results(evaluation)
        if results is None:
            return warn(LimitError("There is nothing to save yet."))
        text = to_json(results) + "\n"
        return self._letter("slim-evaluation.json", text, "application/json", "The results are saved as JSON.")

    def html(self, evaluation: VisitorEvaluation) -> Updates:
        """The report as `evaluate` writes it."""
        results = self._results(evaluation)
        if results is None:
            return warn(LimitError("There is nothing to save yet."))
        return self._letter("slim-evaluation.html", report_page(results), "text/html", "The report is saved as HTML.")

    @staticmethod
    def _results(evaluation: VisitorEvaluation) -> Evaluation | None:
        return None if evaluation.run is None else evaluation.run.evaluation()

    def frame(self, evaluation: VisitorEvaluation) -> Updates:
        """The current state of the evaluation."""
        running = evaluation.running
        has_results = not running and evaluation.run is not None and evaluation.run.done > 0
        return {
            self.view: wire.tab_view(evaluation),
            self.run_button: gr.Button(visible=not running),
            self.stop_button: gr.Button(visible=running),
            **{button: gr.Button(interactive=has_results) for button in self.exports},
        } | self._of_file(evaluation)

    @staticmethod
    def _letter(name: str, text: str, mime: str, sentence: str) -> dict[str, Any]:
        # With the number, the same file is sent again if it is asked for twice.
        return {"kind": "save", "number": time.time_ns(), "name": name, "text": text, "mime": mime, "said": sentence}
