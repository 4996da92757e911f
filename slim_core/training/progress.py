# SPDX-License-Identifier: Apache-2.0
"""Around the training steps: a progress bar, Ctrl-C, and a stop if the loss becomes NaN."""

from __future__ import annotations

import math
import signal
import threading
import time
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .errors import TrainingError


SAME_SIGNAL = 1.0  # seconds within which launchers forward a Ctrl-C a second time
SHOWN = {
    "loss": "loss {:.4f}",
    "loss_l1": "l1 {:.4g}",
    "loss_balance": "balance {:.4g}",
    "eval_loss": "validation {:.4f}",
    "identity_share": "identity {:.1%}",
    "distance": "distance {:.2f}",
    "learning_rate": "rate {:.2e}",
}


class LiveProgress(TrainerCallback):
    """A progress bar with loss, speed and time left, and one line per log entry.

    Args:
        console: where to.
        title: in front of the bar.
        batch_size: examples of one step.
    """

    def __init__(self, console: Console, title: str, batch_size: int) -> None:
        self._console, self._title, self._batch_size = console, title, batch_size
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(
            self._title, total=state.max_steps, completed=state.global_step, loss="", speed=""
        )
        self._progress.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._progress is None:
            return
        self._progress.update(self._task, completed=state.global_step, speed=self._speed(self._progress))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        shown = [text.format(logs[name]) for name, text in SHOWN.items() if name in logs]
        if self._progress is None or not shown:
            return
        if "loss" in logs:
            self._progress.update(self._task, loss=shown[0])
            shown += [text for text in (self._speed(self._progress), self._time_left(self._progress)) if text]
        line = f"{self._title} step {state.global_step}/{state.max_steps}: {', '.join(shown)}"
        self._console.print(line, soft_wrap=True)

    def _speed(self, progress: Progress) -> str:
        speed = progress.tasks[0].speed
        return f"{speed * self._batch_size:.1f} examples/s" if speed else ""

    def _time_left(self, progress: Progress) -> str:
        seconds = progress.tasks[0].time_remaining
        return f"{timedelta(seconds=round(seconds))} left" if seconds else ""

    def close(self) -> None:
        """Remove the bar, however training ended."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class StopOnInterrupt(TrainerCallback):
    """Within a `with` block, the first Ctrl-C ends training after the current step, with a checkpoint.

    So does the end that a cluster announces (SIGTERM). A second signal ends it at once. Outside the main thread, where
    no signal arrives, `ask` does the same.

    Attributes:
        stopped: whether training was ended that way.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._asked_at: float | None = None
        self._before: dict[signal.Signals, Any] = {}

    def ask(self) -> None:
        """End training after the running step."""
        self._asked_at = time.monotonic()

    def __enter__(self) -> StopOnInterrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked_at is None:
            self.ask()
        elif time.monotonic() - self._asked_at > SAME_SIGNAL:
            raise KeyboardInterrupt

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.anyone_asked(args.device):
            return
        # A signal during the last step does not interrupt this training: it is done.
        self.stopped = state.global_step < state.max_steps
        control.should_training_stop = control.should_save = control.should_log = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stopped:
            control.should_evaluate = False

    def anyone_asked(self, device: torch.device) -> bool:
        """Whether any process was asked to end, also where training was done by then. All must call it."""
        # The signal reaches the processes at different steps; all must stop at the same one.
        if not (dist.is_available() and dist.is_initialized()):
            return self._asked_at is not None
        asked = torch.tensor(float(self._asked_at is not None), device=device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked)


class LossGuard(TrainerCallback):
    """Ends a run whose loss has become NaN or infinite: nothing after that is worth saving."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # The last steps are checked too, and the curves reach the end.
        control.should_log |= state.global_step >= state.max_steps

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss is {loss} at step {state.global_step}, so training has diverged; lower --learning-rate."
            )
