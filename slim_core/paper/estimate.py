# SPDX-License-Identifier: Apache-2.0
"""How long an experiment would take and how much memory it needs, estimated before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import nn

from ..base.choice import BaseChoice
from ..base.devices import compute_dtype
from ..base.estimate import empty_model
from ..base.estimate import estimate as estimate_base
from ..base.files import base_files
from ..base.formatting import counted, size
from ..training.report import TrainingRecord
from .runs import MIXED, Cell
from .scales import NOISY, DemoScale, FullScale
from .work import CellFiles, WorkFolder


# On one core of a small cloud machine; only for what the work folder has no training of yet.
DEMO_SECONDS_A_STEP = 1.1
DEMO_SECONDS_A_QUESTION = 0.06
# Training examples of the sets on the Hub.
EXAMPLES = {
    "openbookqa": 4957,
    "social_iqa": 33410,
    "boolq": 9427,
    "commonsense_qa": 9741,
    "hellaswag": 39905,
    "winogrande": 40398,
    "arc_easy": 2251,
    "arc_challenge": 1119,
}
BATCH, EPOCHS = 16, 2
TOKENS = 160  # of an example
ANSWER = 64  # tokens of an answer, in the mean over the tasks
# What a data-centre GPU does in practice: multiplications in bfloat16, and bytes read from its memory, per second.
SUSTAINED, BANDWIDTH = 1e14, 1e12
STEP_SECONDS = 0.03  # seconds that the program itself takes for one token of all rows
TOTAL_RANK = 128
BYTES_TRAINED = 16  # bytes of a trained number, its gradient and the optimiser's two numbers
ROWS = 100  # base and adapter, 50 questions together


def duration(hours: float) -> str:
    """A time in words."""
    minutes = max(1, round(60 * hours))
    if minutes >= 60:
        return f"{hours:.1f} hours"
    return "1 minute" if minutes == 1 else f"{minutes} minutes"


@dataclass(frozen=True)
class PaperEstimate:
    """What is left to do.

    Attributes:
        trainings, measurements: how many.
        hours: for all of it, in one process.
        bytes: of memory, the most at a time; None if it does not matter.
        basis: what the numbers are based on.
    """

    trainings: int
    measurements: int
    hours: float
    bytes: int | None
    basis: str

    @property
    def words(self) -> str:
        """All of it in one sentence."""
        if not self.measurements:
            return "Nothing is left to do."
        time = duration(self.hours)
        memory = "" if self.bytes is None else f" and {size(self.bytes)} of memory"
        return (
            f"{counted(self.trainings, 'training')} and {counted(self.measurements, 'measurement')} are left: about "
            f"{time} in one process{memory}, {self.basis}."
        )


def estimate_paper(work: WorkFolder, cells: Sequence[Cell]) -> PaperEstimate:
    """Estimate what is left of an experiment.

    Raises:
        EngineError: if the base's configuration cannot be read.
    """
    cell_files = [(cell, work.files_of(cell)) for cell in cells]
    remaining = [(cell, files) for cell, files in cell_files if not files.measured.is_file()]
    untrained = {files.origin: cell for cell, files in remaining if files.record is None}
    measured = {files.measured for _, files in remaining}
    if isinstance(work.scale, FullScale):
        return _full(work.scale, list(untrained.values()), len(measured))
    return _demo(work, work.scale, cell_files, list(untrained.values()), len(measured))


def _demo(
    work: WorkFolder,
    scale: DemoScale,
    cell_files: Sequence[tuple[Cell, CellFiles]],
    untrained: Sequence[Cell],
    measured: int,
) -> PaperEstimate:
    step_seconds: dict[str, list[float]] = {}
    for folder in sorted((work.folder / "trained").glob("*")):
        record = TrainingRecord.load(folder)
        if record is not None and record.status == "finished" and record.steps:
            step_seconds.setdefault(record.method, []).append(record.seconds / record.steps)
    seconds = 0.0
    for cell in untrained:
        durations = step_seconds.get(cell.contender.setup.method)
        steps = cell.contender.steps or scale.plan.steps
        seconds += steps * (fmean(durations) if durations else DEMO_SECONDS_A_STEP)
    seconds += measured * scale.questions * 8 * DEMO_SECONDS_A_QUESTION
    basis = "from the trainings in the work folder" if step_seconds else "as measured on one core of a cloud machine"
    return PaperEstimate(len(untrained), measured, seconds / 3600, None, basis)


def adapters_hours(scale: DemoScale, cells: Sequence[Cell]) -> float:
    """Hours for the cells of an experiment on a base that is not there yet."""
    seconds = sum((cell.contender.steps or scale.plan.steps) * DEMO_SECONDS_A_STEP for cell in cells)
    return (seconds + len(cells) * scale.questions * 8 * DEMO_SECONDS_A_QUESTION) / 3600


def _full(scale: FullScale, cells: Sequence[Cell], measured: int) -> PaperEstimate:
    choice = BaseChoice(scale.base, scale.revision, 4 if scale.four_bit else None)
    with base_files(choice) as files:
        config = files.config()
    dtype = torch.bfloat16 if not torch.cuda.is_available() else compute_dtype()
    model = empty_model(config, dtype)
    need = estimate_base(model, dtype, choice.bits)
    text = config.get_text_config()
    trained = TOTAL_RANK * sum(
        module.in_features + module.out_features
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "lm_head" not in name
    )
    tokens = BATCH * 2 * TOKENS
    # Per token: about 34 numbers of each hidden unit and block are kept for the way back, and the logits three times.
    kept_bytes = tokens * (34 * text.hidden_size * text.num_hidden_layers * 2 + 3 * text.vocab_size * 4)
    memory = need.weights + trained * BYTES_TRAINED + kept_bytes
    seconds = sum(_steps(scale, cell) * BATCH * TOKENS for cell in cells) * 6 * need.parameters / SUSTAINED
    questions = (scale.questions or 3000) * (len(scale.downstream) + 3)
    writing = questions * 2 / ROWS * ANSWER * (need.weights / BANDWIDTH + STEP_SECONDS)
    seconds += measured * (writing + questions * 2 * TOKENS * 2 * need.parameters / SUSTAINED)
    basis = (
        f"for a base of {need.parameters / 1e9:.2g} billion parameters on one GPU that multiplies "
        f"{SUSTAINED / 1e12:.0f} · 10¹² times a second"
    )
    return PaperEstimate(len(cells), measured, seconds / 3600, int(memory), basis)


def _steps(scale: FullScale, cell: Cell) -> int:
    fixed = cell.contender.steps or scale.max_steps
    if fixed is not None:
        return fixed
    data = cell.contender.data
    chosen = scale.downstream if data in (MIXED, NOISY) else (data,)
    return EPOCHS * sum(EXAMPLES.get(name, 10_000) for name in chosen) // BATCH
