# SPDX-License-Identifier: Apache-2.0
"""Running a visitor's list of prompts: a thread asks one after another, and the page shows a row for each."""

from __future__ import annotations

import contextvars
import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import gradio as gr

from ...base.formatting import likelihood
from ...inference import EngineError
from ...inference.types import Sampling, Variant
from ...many import ListedPrompt, PromptAnswer, PromptProgress, PromptResult, Respondent, mean_drift
from ..backend import Backend, Job
from ..limits import LimitError, check_room, check_text
from ..state.columns import columns
from ..state.prompt_list import ListRun, PromptList
from ..state.session import Session
from ..words import base_name
from .stream import INTERVAL
from .verdict import KINDS, of_variant, share


# How often a list that found no free place tries again, in seconds.
PATIENCE = 0.5
# Seconds after which a list is drawn though nothing has changed.
BEAT = 1.0
FAILED = "The model failed. The server's log says why."
OTHER_BASE = "The base model was changed, so the rest of the list was not asked."
log = logging.getLogger(__name__)


class Lists:
    """Starts lists, limited so that they never take all the places for prompts.

    Args:
        backend: where the model is.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._most = max(1, backend.places // 2)
        self._free = threading.BoundedSemaphore(self._most)

    def start(
        self,
        session: Session,
        listed: PromptList,
        prompts: Sequence[ListedPrompt],
        sampling: Sampling,
        system: str = "",
        batched: bool = True,
    ) -> ListRun:
        """Ask a list.

        Args:
            session: the visitor's: their columns and gates.
            listed: the visitor's list; its results come into it.
            prompts: what is asked.
            sampling: how tokens are chosen.
            system: for prompts that bring none of their own.
            batched: all answers of a prompt at once, or one after another.

        Raises:
            LimitError: if the visitor's last list, or too many of others, are being answered.
        """
        backend = self._backend
        loaded = columns(session, backend)
        askers = tuple(Respondent(name, variant, session.strength(variant)) for name, variant in loaded.items())
        run = ListRun(
            tuple(prompts),
            askers,
            system,
            sampling,
            batched,
            base_name(backend.engine.info),
            {name: variant for name, variant in loaded.items() if name in session.own_variants},
        )
        if listed.running:
            raise LimitError("A list is being answered already. Stop it first, or wait until it is done.")
        if not self._free.acquire(blocking=False):
            others = "A list of another visitor is" if self._most == 1 else f"{self._most} lists of other visitors are"
            raise LimitError(f"{others} being answered, and no more can be started. Try again in a few minutes.")
        if not listed.begin(run):
            self._free.release()
            raise LimitError("A list is being answered already. Stop it first, or wait until it is done.")
        # ZeroGPU time is charged to the visitor, who is known from this thread's context.
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._follow, run, backend.generation), daemon=True).start()
        return run

    def _follow(self, run: ListRun, generation: int) -> None:
        try:
            for number, listed in enumerate(run.prompts, 1):
                if run.stopping:
                    break
                if self._backend.generation != generation:
                    run.note = OTHER_BASE
                    break
                result = _ask(self._backend, run, PromptProgress(number, listed, run.system, run.askers))
                if result is None:
                    break
                run.results.append(result)
        finally:
            run.place, run.crowded = 0, False
            self._free.release()
            run.ended.set()


def _ask(backend: Backend, run: ListRun, gathering: PromptProgress) -> PromptResult | None:
    """The next prompt; None if the list ends here."""
    try:
        check_room(backend.engine.count_tokens(gathering.messages), backend.engine.info.context_length)
    except (LimitError, EngineError) as error:
        return gathering.failed(str(error))
    if not _enter(backend, run):
        return None
    try:
        kept, adapters = backend.visitor_adapters.keep(run.as_session())
    except LimitError as error:
        backend.leave()
        run.note = str(error)  # no answer should be attributed to the wrong adapter
        return None
    stops = run.begin()
    job = Job(gathering.rows, run.sampling, run.batched, gathering.reading, tuple(adapters.items()))
    try:
        with closing(backend.run(job, stops)) as items:
            for item in items:
                gathering.take(item)
                run.place = gathering.step.place if gathering.step is not None else 0
                if run.stopping and run.place:
                    return None  # do not queue for an answer that is no longer wanted
        if run.stopping:
            return None
        if gathering.step is None or any(row.finish_reason == "stopped" for row in gathering.step.rows):
            run.note = OTHER_BASE  # nobody else ends answers
            return None
        return gathering.result()
    except EngineError as error:
        return gathering.failed(str(error))
    except gr.Error as error:
        # ZeroGPU says why there is no GPU, and would repeat it for every prompt.
        run.note = re.sub(r"<[^>]*>", "", str(error.message))
        return None
    except Exception:
        log.exception("the model failed")
        return gathering.failed(FAILED)
    finally:
        run.place = 0
        backend.leave()
        kept.close()


def _enter(backend: Backend, run: ListRun) -> bool:
    """Take a place, waiting for one as long as it takes; False if the list is to end meanwhile."""
    while not run.stopping:
        try:
            backend.enter()
        except LimitError:
            run.crowded = True
            run.pause(PATIENCE)
            continue
        run.crowded = False
        return True
    return False


def checked(prompts: Sequence[ListedPrompt]) -> tuple[ListedPrompt, ...]:
    """The prompts, if no model would have to read what it should not.

    Raises:
        LimitError: with the place of the first that has it.
    """
    for prompt in prompts:
        for message in prompt.messages:
            try:
                check_text(message.content)
            except LimitError as error:
                raise LimitError(f"{prompt.place}: {error}") from None
    return tuple(prompts)


def ticks(run: ListRun) -> Iterator[bool]:
    """When to draw: now, whenever something has changed, once in `BEAT` seconds, and once more at the end.

    Closing it (the visitor went away) ends the list; that is possible only between two drawings.

    Returns:
        For each drawing whether there are new rows.
    """
    drawn: tuple[int, int, bool, bool] | None = None
    due = 0.0
    try:
        while True:
            ended = run.ended.is_set()
            now = (len(run.results), run.place, run.crowded, run.stopping)
            if now != drawn or ended or time.monotonic() >= due:
                new, drawn, due = drawn is None or now[0] != drawn[0], now, time.monotonic() + BEAT
                yield new or ended
            if ended:
                return
            run.ended.wait(INTERVAL)
    finally:
        if not run.ended.is_set():
            run.stop()


# ---- for the page


def shown(listed: PromptList) -> dict[str, object]:
    """What stands between the box and the table."""
    run = listed.run
    file = "" if listed.file is None else f"{listed.file[0]}: {_prompts(len(listed.file[1]))}."
    if run is None:
        return {"file": file, "line": "", "done": 0, "total": 0, "running": False, "note": "", "means": []}
    return {
        "file": file,
        "line": _line(run),
        "done": len(run.results),
        "total": len(run.prompts),
        "running": not run.ended.is_set(),
        "note": run.note,
        "means": _means(run) if run.ended.is_set() else [],
    }


def status(run: ListRun) -> str:
    """What is read aloud, at the begin and at the end."""
    if not run.ended.is_set():
        return f"Many prompts: {_prompts(len(run.prompts))} to answer."
    return f"Many prompts: {_line(run)}"


def _line(run: ListRun) -> str:
    done, total = len(run.results), len(run.prompts)
    if run.ended.is_set():
        failed = sum(result.failed for result in run.results)
        return f"{done} of {total} answered{f', {failed} of them failed' if failed else ''}."
    doing = f"{done} of {total} answered; "
    if run.stopping:
        return f"{doing}stopping."
    if run.crowded:
        return f"{doing}all places for prompts are taken, the next is asked when one is free."
    if run.place:
        return f"{doing}the next waits in line, {run.place} before it."
    return f"{doing}number {min(done + 1, total)} is being answered."


def _prompts(count: int) -> str:
    return f"{count} prompt{'' if count == 1 else 's'}"


def _means(run: ListRun) -> list[str]:
    """The mean drift in a sentence for each verdict."""
    sentences = []
    for group in mean_drift(run.results):
        means = ", ".join(f"{label} {mean:.3f}" for label, mean in group.means.items())
        which = f"{KINDS[group.kind]}, {_prompts(group.prompts)}" if group.kind else _prompts(group.prompts)
        sentences.append(f"{which}: mean drift {means} nats a token.")
    return sentences


def headers(loaded: Sequence[Variant]) -> list[str]:
    """The table's, for those who answer."""
    titles = ["#", "Prompt"]
    for variant in loaded:
        titles.append(variant.label)
        if variant.kind != "base":
            titles.append(f"{variant.label}: drift")
        if variant.kind == "slim":
            titles.append(f"{variant.label}: identity")
        if variant.strength is not None:
            titles.append(f"{variant.label}: verdict")
    return titles


def table(listed: PromptList, loaded: Sequence[Variant]) -> dict[str, list[Any]]:
    """A row for each prompt that is done.

    Args:
        listed: the visitor's.
        loaded: the variants that would answer now, for the headers before there is a run.
    """
    run = listed.run
    if run is None:
        return {"headers": headers(loaded), "data": []}
    return {"headers": headers([a.variant for a in run.askers]), "data": [_row(r, run.askers) for r in run.results]}


def _row(result: PromptResult, askers: Sequence[Respondent]) -> list[str]:
    answers = {answer.column: answer for answer in result.answers}
    cells = [str(result.number), result.prompt]
    for index, asker in enumerate(askers):
        variant, answer = asker.variant, answers.get(asker.column)
        # The reason is shown only once.
        failed = "" if index or result.error is None else result.error
        cells.append(failed if answer is None else answer.error or answer.text)
        if variant.kind != "base":
            cells.append(_drift(answer))
        if variant.kind == "slim":
            cells.append("" if answer is None or answer.identity is None else share(answer.identity))
        if variant.strength is not None:
            if answer is None or answer.verdict is None:
                cells.append("")
            else:
                cells.append(KINDS[of_variant(answer.verdict, answer.strength)])
    return cells


def _drift(answer: PromptAnswer | None) -> str:
    if answer is None or answer.log_ratio is None or answer.mean_kl is None:
        return ""
    return f"{likelihood(answer.log_ratio)}; {answer.mean_kl:.3f} nats a token"
