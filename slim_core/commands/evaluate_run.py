# SPDX-License-Identifier: Apache-2.0
"""The steps of `evaluate`: attach adapters, solve items with the engine, write results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from ..base.choice import demo_choice
from ..demo.tasks import NAMES, demo_tasks
from ..evaluation.errors import EvaluationError
from ..evaluation.journal import Journal
from ..evaluation.participants import attach_adapter
from ..evaluation.report import answers_page, report_page
from ..evaluation.results import Evaluation, Participant, evaluated, label_of, to_json
from ..evaluation.reuse import Reuse
from ..evaluation.run import fingerprint_of, run_tasks, units_of, unsolved
from ..evaluation.tasks import Asking, Task, load_tasks
from ..inference import AS_TRAINED, Engine, GateSetting, Sampling
from ..many import ListedPrompt, PromptResult, Respondent, ask_all, gate_name, read_prompt_file
from ..many import to_json as answers_json
from ..outside.errors import printable, reason
from ..paths import DEMO
from .console import screen, warn
from .evaluate_view import show
from .files import write_whole
from .gates import gated_variants
from .progress import CountedProgress


NAME = re.compile(r"[\w.-]{1,40}(?:@\d{1,9})?", re.ASCII)
# Maximum number of variants in an evaluation: each is a row of every batch.
MOST = 64
# Lines of progress where there is no terminal.
MOST_LINES = 100


@dataclass(frozen=True)
class Named:
    """The base and adapters named on the command line.

    Attributes:
        base: folder or Hub id.
        adapters: source by name.
    """

    base: str
    adapters: dict[str, str]


def adapters_of(base: str | None, adapters: Sequence[str]) -> Named:
    """The named models, or the demo.

    Raises:
        EvaluationError: if a name is invalid or appears twice, or there is no adapter.
    """
    if base is None:
        demo = demo_choice(DEMO, "--base and --adapters")
        demo_adapters = {
            name: source for name, source in (("lora", demo.lora), ("slim", demo.slim)) if source is not None
        }
        return Named(demo.base, _by_name(adapters) or demo_adapters)
    sources = _by_name(adapters)
    if not sources:
        raise EvaluationError("No adapter was named; name one or more with --adapters.")
    return Named(base, sources)


def _by_name(adapters: Sequence[str]) -> dict[str, str]:
    sources: dict[str, str] = {}
    for text in adapters:
        before, equals, after = text.partition("=")
        # A folder may have = in its name.
        is_named = bool(equals) and NAME.fullmatch(before) is not None and not Path(text).exists()
        name, source = (before, after) if is_named else (re.sub(r"[^\w.@-]+", "-", Path(text).name), text)
        if not source.strip():
            raise EvaluationError(f"{text!r} does not name an adapter; write NAME=FOLDER, or a folder or Hub id.")
        if not NAME.fullmatch(name) or name == "base":
            raise EvaluationError(
                f"{name!r} cannot be an adapter's name; write NAME=FOLDER, with letters, digits, - and _ in the name."
            )
        if name in sources:
            raise EvaluationError(f"There are two adapters named {name}; write another name before one: NAME=FOLDER.")
        sources[name] = source
    return sources


def chosen_tasks(
    base: str | None, names: Sequence[str], asking: Asking, data_dir: Path | None, trained_form: str
) -> list[Task]:
    """The named tasks; the demo's if none are named.

    Raises:
        EvaluationError: if there is none, or one cannot be read.
    """
    if not names and base is not None:
        raise EvaluationError("No task was named; name one or more with --tasks, such as openbookqa or my.jsonl.")
    return load_tasks(
        names or ["demo"],
        asking,
        data_dir=data_dir,
        trained_form=trained_form,
        others=demo_tasks(),
        groups={"demo": NAMES},
    )


def attach(engine: Engine, named: Named, strengths: Sequence[float], quantiles: Sequence[float]) -> list[Participant]:
    """Attach the adapters. The base and all adapters take part, those with a gate also at further strengths
    and quantiles.

    Raises:
        EngineError: if an adapter cannot be used with this base, or a strength or quantile is invalid.
    """
    participants = [Participant(Respondent("base", engine.variants[0]), named.base)]
    for name, source in named.adapters.items():
        participants.append(attach_adapter(engine, name, source))
    gated = gated_variants([participant.respondent.variant for participant in participants], strengths, quantiles)
    adapters = [participant for participant in participants if participant.respondent.variant in gated]
    for gate in dict.fromkeys([*(GateSetting(s) for s in strengths), *(GateSetting(None, q) for q in quantiles)]):
        for adapter in adapters:
            respondent = replace(adapter.respondent, column=adapter.respondent.column + gate_name(gate), gate=gate)
            participants.append(replace(adapter, respondent=respondent))
    if len(participants) > MOST:
        raise EvaluationError(f"There are {len(participants)} variants; at most {MOST} can be compared at once.")
    return participants


def new_files(output: Path) -> tuple[Path, Path]:
    """The files for results and report.

    Raises:
        EvaluationError: if they could not be written once the results are there.
    """
    shown = printable(str(output))
    if output.suffix.lower() != ".json":
        raise EvaluationError(f"--output is {shown}; it must end in .json.")
    files = (output, output.with_suffix(".html"))
    for path in files:
        name = printable(str(path))
        if path.exists() or path.is_symlink():
            raise EvaluationError(f"{name} exists already; name a new file with --output.")
        try:
            path.touch(exist_ok=False)
            path.unlink()
        except OSError as error:
            raise EvaluationError(
                f"{name} cannot be written: {reason(error)}; name another file with --output."
            ) from None
    return files


@dataclass(frozen=True)
class TaskRun:
    """Tasks to be solved.

    Attributes:
        tasks: what is solved.
        results, report: new files.
        resume: whether to continue an interrupted run.
        sequence: whether the adapters are stages of one training.
        size: items that are solved together.
        reuse: answers of earlier evaluations.
    """

    tasks: tuple[Task, ...]
    results: Path
    report: Path
    resume: bool
    sequence: bool
    size: int
    reuse: Reuse

    @classmethod
    def prepare(
        cls, tasks: Sequence[Task], output: Path, resume: bool, sequence: bool, size: int, reuse: Sequence[Path]
    ) -> TaskRun:
        """Check everything that can be checked before the model is loaded.

        Raises:
            EvaluationError: if something is wrong.
        """
        run = cls(tuple(tasks), *new_files(output), resume, sequence, size, Reuse(reuse))
        if not resume and run.journal.exists():
            raise EvaluationError(
                f"{printable(str(run.journal))} is from an evaluation that was interrupted; continue it with "
                "--resume, or delete it."
            )
        return run

    @property
    def journal(self) -> Path:
        """Where finished items are kept until the results are written."""
        return self.results.with_name(f"{self.results.name}.partial")

    def run(self, engine: Engine, participants: Sequence[Participant]) -> None:
        """Solve, write and show.

        Raises:
            EngineError: if something fails.
            typer.Exit: with 130 if a person interrupted it; what is solved is kept.
        """
        self._check_sequence(participants)
        respondents = [participant.respondent for participant in participants]
        self.reuse.prepare(engine.info, participants)
        hashes = {p.respondent.column: p.sha256 + p.config_sha256 for p in participants} | self.reuse.hashes
        journal = Journal(
            self.journal, fingerprint_of(engine, respondents, hashes, self.tasks, self.size), self.resume
        )
        try:
            with CountedProgress("Items", len(units_of(self.tasks, self.size)), MOST_LINES) as progress:
                samples = run_tasks(
                    engine,
                    respondents,
                    self.tasks,
                    journal,
                    self.size,
                    lambda unit: progress.next(unit.task.title),
                    self.reuse,
                )
        except KeyboardInterrupt:
            screen(stderr=True, soft_wrap=True).print(
                f"Interrupted; what is solved is in {printable(str(self.journal))}. Continue with --resume.",
                highlight=False,
            )
            raise typer.Exit(130) from None
        finally:
            journal.close()
        self._report_reuse()
        gone = unsolved(samples)
        if len(gone) == len(self.tasks):
            raise EvaluationError(" ".join(gone.values()))
        for sentence in gone.values():
            warn(f"{sentence} This task is left out.")
        tasks = [task for task in self.tasks if task.name not in gone]
        evaluation = evaluated(engine.info, participants, tasks, samples, self.sequence)
        self._write(evaluation)
        journal.delete()
        show(evaluation, screen())
        written = f"{printable(str(self.results))} and {printable(str(self.report))}"
        screen(stderr=True, soft_wrap=True).print(f"Results and report: {written}.", highlight=False)

    def _report_reuse(self) -> None:
        if self.reuse.taken:
            sentence = f"{self.reuse.taken:,} answers were taken over from earlier evaluations."
            screen(stderr=True, soft_wrap=True).print(sentence, highlight=False)
        elif self.reuse.hashes:
            warn(
                "Nothing was taken over from the files of --reuse: none of these adapters, with the same gate, "
                "answered one of these tasks there."
            )

    def _check_sequence(self, participants: Sequence[Participant]) -> None:
        stages = len(participants) - 1
        counts = [
            sum(task.kind == "downstream" and task.scoring == scoring for task in self.tasks)
            for scoring in {task.scoring for task in self.tasks}
        ]
        if self.sequence and (stages < 2 or stages not in counts):
            raise EvaluationError(
                "--sequence needs at least two adapters, and as many downstream tasks with the same scoring, in the "
                f"same order; there are {stages} adapters and {max(counts)} such tasks."
            )

    def _write(self, evaluation: Evaluation) -> None:
        # The report is written first, so that the results exist only when everything is complete.
        write_whole(self.report, report_page(evaluation))
        write_whole(self.results, to_json(evaluation) + "\n")


@dataclass(frozen=True)
class Prompting:
    """Prompts without right answers.

    Attributes:
        prompts: what is asked.
        results, report: new files.
        system: for prompts that bring none of their own.
        max_new_tokens: of an answer.
    """

    prompts: tuple[ListedPrompt, ...]
    results: Path
    report: Path
    system: str
    max_new_tokens: int

    @classmethod
    def read(cls, prompts: Path, output: Path, system: str, max_new_tokens: int) -> Prompting:
        """Read the prompts before the model is loaded.

        Raises:
            EngineError: if one cannot be asked, or a file cannot be written.
        """
        return cls(tuple(read_prompt_file(prompts)), *new_files(output), system, max_new_tokens)

    def run(self, engine: Engine, participants: Sequence[Participant]) -> None:
        """Ask and write.

        Raises:
            EngineError: if something fails.
            typer.Exit: with 130 if a person interrupted it; what was answered is written.
        """
        respondents = [participant.respondent for participant in participants]
        if any(respondent.gate != AS_TRAINED for respondent in respondents):
            raise EvaluationError(
                "--strengths and --quantiles are for tasks; with --prompts each adapter answers once."
            )
        sampling = Sampling(max_new_tokens=self.max_new_tokens)
        results: list[PromptResult] = []
        interrupted = False
        try:
            with CountedProgress("Prompts", len(self.prompts), MOST_LINES) as progress:
                for result in ask_all(self.prompts, respondents, self.system, engine.answer, sampling):
                    results.append(result)
                    progress.next(result.place)
        except KeyboardInterrupt:
            interrupted = True
        labels = {respondent.column: label_of(respondent) for respondent in respondents}
        write_whole(self.report, answers_page(results, labels))
        text = answers_json(results, len(self.prompts), engine.info.name, respondents, sampling)
        write_whole(self.results, text + "\n")
        summary = f"{len(results)} of {len(self.prompts)} prompts are answered"
        screen(stderr=True, soft_wrap=True).print(
            f"{'Interrupted: ' if interrupted else ''}{summary}; they are in {printable(str(self.results))} and "
            f"{printable(str(self.report))}.",
            highlight=False,
        )
        if interrupted:
            raise typer.Exit(130)
        if all(result.failed for result in results):
            raise typer.Exit(1)
