# SPDX-License-Identifier: Apache-2.0
"""A visitor's tokenizer in a separate process: a chat template is a program whose loops may never end, and a regular
expression of a tokenizer may take minutes for one word.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..outside.errors import first_line
from .errors import EngineError


PROGRAM = Path(__file__).with_name("sandbox_process.py")
# Conversations take milliseconds.
ANSWER_SECONDS = 5.0
# For importing the worker's modules on a busy machine.
START_SECONDS = 120.0
# Large vocabularies take a second or two. A tokenizer that loads in time here is then loaded in the app, which waits
# for it.
LOAD_SECONDS = 5.0
# Environment variables that Python needs to start. The others may be secrets.
ENVIRONMENT = re.compile(r"((LD_LIBRARY_)?PATH|HOME|LANG|LC_\w+|PYTHON\w*|VIRTUAL_ENV|SYSTEMROOT|TE?MP(DIR)?)\Z", re.I)


class TokenizerProcess:
    """An `Encoder` in a separate process with limited memory, which is ended when it takes too long.

    One thread at a time may use it.

    Args:
        files: of a fast tokenizer. They are copied, so that the process can start again when they are gone.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="slim-tokenizer-", ignore_cleanup_errors=True)
        for file in files:
            if file.is_file():
                shutil.copyfile(file, Path(self._folder.name) / file.name)
        self._process: subprocess.Popen[str] | None = None

    def render(self, messages: Sequence[dict[str, str]], template: str) -> str:
        """The text of a conversation.

        Raises:
            EngineError: if it takes longer than `ANSWER_SECONDS` or too much memory, or no process starts.
            ValueError: if the template refuses the conversation.
        """
        return self._ask({"messages": list(messages), "template": template, "tokenize": False})["text"]

    def encode_chat(self, messages: Sequence[dict[str, str]], template: str) -> list[int]:
        """The token ids of a conversation, up to where the answer begins, or with the beginning of an answer if that
        is the last message; text that people typed never becomes a control token.

        Raises:
            EngineError, ValueError: as `render`.
        """
        return self._ask({"messages": list(messages), "template": template, "tokenize": True})["ids"]

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The token ids of a text; with `special`, including those that the tokenizer adds around any text.

        Raises:
            EngineError, ValueError: as `render`.
        """
        return self._ask({"text": text, "special": special})["ids"]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self.start()
        try:
            print(json.dumps(request), file=process.stdin, flush=True)
            line = _line(process, ANSWER_SECONDS)
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()
            raise EngineError(
                f"The model's chat template or tokenizer takes longer than {ANSWER_SECONDS:.0f} seconds or too much "
                "memory; choose another model."
            )
        reply = json.loads(line)
        if "error" in reply:
            raise ValueError(reply["error"])
        return reply

    def close(self) -> None:
        """End the process. The next request starts another."""
        if self._process is not None:
            self._end()
            self._process = None

    def start(self) -> subprocess.Popen[str]:
        """Start the process and let it load the tokenizer.

        Raises:
            EngineError: if that takes too long or too much memory, or the tokenizer is broken.
        """
        if self._process is None or self._process.poll() is not None:
            self.close()
            process = subprocess.Popen(
                # -P: do not import modules from the program's folder
                [sys.executable, "-P", str(PROGRAM), self._folder.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                # Threads that it has no use for would count as memory.
                env={name: value for name, value in os.environ.items() if ENVIRONMENT.match(name)}
                | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
            self._process, self._end = process, weakref.finalize(self, _end, process)
            if not _line(process, START_SECONDS):
                self.close()
                raise EngineError("The process for the model's tokenizer cannot be started here; try again later.")
            reply = _line(process, LOAD_SECONDS)
            if not reply:
                self.close()
                raise EngineError(
                    f"Loading the model's tokenizer takes longer than {LOAD_SECONDS:.0f} seconds or too much memory; "
                    "choose another model."
                )
            if "error" in json.loads(reply):
                self.close()
                raise EngineError(
                    f"The model's tokenizer cannot be read ({first_line(json.loads(reply)['error'])}); choose another "
                    "model."
                )
        return self._process


def _line(process: subprocess.Popen[str], seconds: float) -> str:
    """The next line that a process writes; "" if it ends first, as it does after `seconds`."""
    assert process.stdout is not None  # it was started with a pipe
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
