# SPDX-License-Identifier: Apache-2.0
"""The server's log of requests: one line each, without a stack trace, and rate-limited."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable

from ...outside.errors import first_line, printable, with_type


LOG = logging.getLogger("slim_core.webui")
# Loggers that write because of what a stranger sends.
TALKATIVE = ("uvicorn.error", "asyncio", "python_multipart", "python_multipart.multipart", LOG.name)
Clock = Callable[[], float]
MOST, SECONDS, LENGTH = 10, 60.0, 300


class OneLineFilter(logging.Filter):
    """A log filter: one line per record and a rate limit; the next line that passes says how many were dropped.

    Args:
        limit: lines that pass in each span of time.
        seconds: how long such a span is.
        clock: returns the time in seconds.
    """

    def __init__(self, limit: int = MOST, seconds: float = SECONDS, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self.limit, self.seconds, self.clock = limit, seconds, clock
        self._lock = threading.Lock()
        self._began, self._passed, self._dropped = clock(), 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        with self._lock:
            if self.clock() - self._began >= self.seconds:
                self._began, self._passed = self.clock(), 0
            if self._passed >= self.limit:
                self._dropped += 1
                return False
            self._passed += 1
            dropped, self._dropped = self._dropped, 0
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text = f"{first_line(text.strip() or 'Error')}: {cause(record.exc_info[1])}"
        if dropped:
            text = f"(After {dropped:,} lines that were left out.) {text}"
        record.msg, record.args = one_line(text), ()
        record.exc_info = record.exc_text = record.stack_info = None
        return True


def one_line(text: str) -> str:
    """A text as one short log line, without control characters."""
    return printable(text[:LENGTH]) + ("…" if len(text) > LENGTH else "")


def cause(error: BaseException) -> str:
    """What went wrong and where, for the operator."""
    frames = traceback.extract_tb(error.__traceback__)
    in_project = [frame for frame in frames if "slim_core" in frame.filename.replace("\\", "/").split("/")] or frames
    place = f" ({in_project[-1].filename}:{in_project[-1].lineno})" if in_project else ""
    return f"{with_type(error)[:150]}{place}"


def unexpected(what: str, error: BaseException) -> None:
    """Log an unexpected error in a request.

    Args:
        what: was asked for.
        error: what came of it.
    """
    LOG.warning("%s could not be answered: %s", what, cause(error))


def keep_quiet() -> None:
    """Limit all log messages that visitors can cause to one line each, and to a few per minute."""
    for name in TALKATIVE:
        logger = logging.getLogger(name)
        if not any(isinstance(known, OneLineFilter) for known in logger.filters):
            logger.addFilter(OneLineFilter())
