# SPDX-License-Identifier: Apache-2.0
"""A visitor's chat template, rendered apart: a template is a program, and its loops may never end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from .errors import EngineError


PROGRAM = Path(__file__).with_name("template_process.py")
# Templates take milliseconds.
RENDER_SECONDS = 5.0
# To import what renders, on a machine that is busy.
START_SECONDS = 120.0


class TemplateProcess:
    """Renders a tokenizer's chat template in a process with little memory, which ends when it takes too long.

    One thread at a time may use it.

    Args:
        tokenizer: with a template of its own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._template = tokenizer.get_chat_template()
        self._special_tokens = dict(tokenizer.special_tokens_map)
        self._process: subprocess.Popen[str] | None = None

    def render(self, messages: Sequence[dict[str, str]], generation_prompt: bool = False) -> str:
        """The text of a conversation.

        Raises:
            EngineError: if it takes longer than `RENDER_SECONDS` or too much memory, or no process starts.
            ValueError: if the template refuses the conversation.
        """
        request = {
            "template": self._template,
            "special_tokens": self._special_tokens,
            "messages": list(messages),
            "generation_prompt": generation_prompt,
        }
        process = self._started()
        try:
            print(json.dumps(request), file=process.stdin, flush=True)
            line = _line(process, RENDER_SECONDS)
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()
            raise EngineError(
                f"The model's chat template takes longer than {RENDER_SECONDS:.0f} seconds or more memory than any "
                "needs; choose another model."
            )
        found = json.loads(line)
        if "error" in found:
            raise ValueError(found["error"])
        return found["text"]

    def close(self) -> None:
        """End the process. The next conversation starts another."""
        if self._process is not None:
            self._end()
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM)],  # -P: the files beside it are no modules of its own
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                # Threads that it has no use for would count as memory.
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
            self._process, self._end = process, weakref.finalize(self, _end, process)
            if not _line(process, START_SECONDS):
                self.close()
                raise EngineError("The process that renders chat templates does not start here; try again later.")
        return self._process


def _line(process: subprocess.Popen[str], seconds: float) -> str:
    """The next line that a process writes; "" if it ends before, as it does after so many seconds."""
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        return process.stdout.readline()
    finally:
        timer.cancel()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
