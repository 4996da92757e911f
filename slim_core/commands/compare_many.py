# SPDX-License-Identifier: Apache-2.0
"""`compare --prompts`: many questions, one after another, and a table of the answers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import typer

from ..inference import AS_TRAINED, Engine, EngineError, GateSetting, Sampling
from ..inference.sampling import check_sampling
from ..many import ListedPrompt, PromptResult, Respondent, ask_all, read_prompt_file, read_prompts, to_csv, to_json
from ..many.prompts import guessed
from ..outside.errors import printable, reason
from .console import screen
from .files import write_whole
from .many_view import results_view, summary
from .progress import CountedProgress


STDIN = "-"
ENDINGS = (".csv", ".json")
# The file is rewritten as answers arrive, so that even a power cut loses no more than this many seconds.
SAVE_SECONDS = 5.0


@dataclass(frozen=True)
class Many:
    """A list of questions and where the answers go.

    Attributes:
        prompts: what is asked.
        output: the file for the answers; None for none.
        as_json: whether JSON is printed in place of a table.
    """

    prompts: tuple[ListedPrompt, ...]
    output: Path | None
    as_json: bool

    @classmethod
    def read(cls, prompts: Path, output: Path | None, as_json: bool) -> Many:
        """The prompts of a file, or of standard input.

        Raises:
            EngineError: if a file cannot be read or written.
        """
        if output is not None:
            _check_output(output)
        if str(prompts) == STDIN:
            content = sys.stdin.buffer.read()
            listed = read_prompts(content, "standard input", guessed(content))
        else:
            listed = read_prompt_file(prompts)
        return cls(tuple(listed), output, as_json)

    def run(self, engine: Engine, system: str, sampling: Sampling, gate: GateSetting) -> bool:
        """Ask, show and save. Returns whether all prompts failed.

        Raises:
            EngineError: if a setting is out of its range, or the file cannot be written.
            typer.Exit: with 130 if a person interrupted it; what was answered is shown and saved.
        """
        check_sampling(sampling)
        askers = tuple(Respondent(v.name, v, AS_TRAINED if v.strength is None else gate) for v in engine.variants)
        results: list[PromptResult] = []

        def text(kind: str) -> str:
            if kind == ".csv":
                return to_csv(results, askers)
            return to_json(results, len(self.prompts), engine.info.name, askers, sampling)

        interrupted, unsaved = False, None
        try:
            self._ask(results, ask_all(self.prompts, askers, system, engine.answer, sampling), text)
        except KeyboardInterrupt:
            interrupted = True
        try:
            self._save(text)
        except EngineError as error:
            unsaved = error  # reported after the answers, which exist nowhere else, have been shown
        if self.as_json:
            print(text(".json"))
        else:
            _show(results, askers)
        if unsaved is not None:
            raise unsaved
        self._report(len(results), interrupted)
        if interrupted:
            raise typer.Exit(130)
        return all(result.failed for result in results)

    def _ask(
        self, results: list[PromptResult], coming: Generator[PromptResult, None, None], text: Callable[[str], str]
    ) -> None:
        """Collect results; the file is rewritten from time to time."""
        saved = time.monotonic()
        with closing(coming), CountedProgress("Prompts", len(self.prompts)) as progress:
            for result in coming:
                results.append(result)
                progress.next(result.place, f": {result.error}" if result.error else "")
                if time.monotonic() - saved >= SAVE_SECONDS:
                    # It is tried once more at the end, and then reported.
                    with suppress(EngineError):
                        self._save(text)
                    saved = time.monotonic()

    def _save(self, text: Callable[[str], str]) -> None:
        if self.output is not None:
            write_whole(self.output, text(self.output.suffix.lower()))

    def _report(self, done: int, interrupted: bool) -> None:
        """Say where the answers are, and how many there are if the list was interrupted."""
        path = "" if self.output is None else printable(str(self.output))
        console = screen(stderr=True, soft_wrap=True)
        if interrupted:
            kept = f"; they are in {path}" if path else ""
            console.print(f"Interrupted: {done} of {len(self.prompts)} prompts are answered{kept}.", highlight=False)
        elif path:
            console.print(f"The answers are in {path}.", highlight=False)


def _show(results: list[PromptResult], askers: Sequence[Respondent]) -> None:
    console = screen()
    console.print(results_view(results, askers))
    for line in summary(results):
        console.print(line, soft_wrap=True, highlight=False)


def _check_output(path: Path) -> None:
    """Refuse an output file that could not be written later."""
    shown = printable(str(path))
    if path.suffix.lower() not in ENDINGS:
        raise EngineError(f"--output is {shown}; it must end in {' or '.join(ENDINGS)}.")
    if path.exists() or path.is_symlink():
        raise EngineError(f"{shown} exists already; name a new file with --output.")
    try:
        path.touch(exist_ok=False)
        path.unlink()
    except OSError as error:
        raise EngineError(f"{shown} cannot be written: {reason(error)}; name another file with --output.") from None
