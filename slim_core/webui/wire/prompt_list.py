# SPDX-License-Identifier: Apache-2.0
"""Running a visitor's list of prompts: a thread asks one after another, and the page shows a row for each."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Any

import gradio as gr

from ...base.formatting import likelihood, share
from ...inference import EngineError
from ...inference.types import Sampling, Variant
from ...many import ListedPrompt, PromptAnswer, PromptProgress, PromptResult, Respondent, mean_drift
from ..backend import Backend, Job
from ..limits import LimitError, check_room, check_text
from ..state.columns import columns
from ..state.prompt_list import ListRun, PromptList
from ..state.session import Session
from ..words import base_name
from .background import BACKGROUND, FAILED, Threads, take_place
from .verdict import KINDS, of_variant


OTHER_BASE = "The base model was changed, so the rest of the list was not asked."
log = logging.getLogger(__name__)


class Lists:
    """Starts lists, limited so that they never take all the places for prompts.

    Args:
        backend: where the model is.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._threads = Threads(backend.places // 2, "A list", "lists", "being answered")

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
        run = ListRun(
            prompts=tuple(prompts),
            askers=tuple(Respondent(name, variant, session.gate(variant)) for name, variant in loaded.items()),
            system=system,
            sampling=sampling,
            batched=batched,
            base=base_name(backend.engine.info),
            own_variants={name: variant for name, variant in loaded.items() if name in session.own_variants},
        )
        self._threads.start(listed, run, partial(self._follow, generation=backend.generation))
        return run

    def _follow(self, run: ListRun, generation: int) -> None:
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


def _ask(backend: Backend, run: ListRun, gathering: PromptProgress) -> PromptResult | None:
    """The next prompt; None if the list ends here."""
    try:
        check_room(backend.engine.count_tokens(gathering.messages), backend.engine.info.context_length)
    except (LimitError, EngineError) as error:
        return gathering.failed(str(error))
    if not take_place(backend, run):
        return None
    try:
        stack, adapters = backend.visitor_adapters.keep(run.as_session())
    except LimitError as error:
        backend.leave(BACKGROUND)
        run.note = str(error)  # no answer should be attributed to the wrong adapter
        return None
    stops = run.begin()
    job = Job(gathering.rows, run.sampling, run.batched, gathering.reading, tuple(adapters.items()), keep=False)
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
        backend.leave(BACKGROUND)
        stack.close()


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


# ---- for the page


def tab_view(listed: PromptList) -> dict[str, object]:
    """The progress of the list, shown between the box and the table."""
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
    """What is read aloud, at the beginning and at the end."""
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
        title = f"{KINDS[group.kind]}, {_prompts(group.prompts)}" if group.kind else _prompts(group.prompts)
        sentences.append(f"{title}: mean drift {means} nats per token.")
    return sentences


def headers(loaded: Sequence[Variant]) -> list[str]:
    """The headers of the table, one group for each variant that answers."""
    titles = ["#", "Prompt"]
    for variant in loaded:
        titles.append(variant.label)
        if variant.kind != "base":
            titles.append(f"{variant.label}: drift")
        if variant.kind == "slim":
            titles.append(f"{variant.label}: past LoRA")
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
                cells.append(KINDS[of_variant(answer.verdict, answer.gate)])
    return cells


def _drift(answer: PromptAnswer | None) -> str:
    if answer is None or answer.log_ratio is None or answer.mean_kl is None:
        return ""
    return f"{likelihood(answer.log_ratio)}; {answer.mean_kl:.3f} nats per token"
