# SPDX-License-Identifier: Apache-2.0
"""Conversations by ticket: for Gradio a reloaded page is a new one; with its ticket it continues, and the visitor's
adapters stay.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from .session import Session


# Seconds that a visitor's adapters stay without an open page: reloading one takes a while on a slow connection.
PATIENCE = 60.0


class Visits:
    """The sessions of all pages, for as long as Gradio keeps them.

    Args:
        leave: called with the owner of a session that no open page shows any more.
    """

    def __init__(self, leave: Callable[[str], None] = lambda owner: None) -> None:
        self._sessions: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()
        # By Gradio's name of each open page, the session that it shows.
        self._open: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()
        self._leave = leave
        self._lock = threading.Lock()

    def find(self, ticket: Any, user: str | None) -> Session | None:
        """The session of a ticket, if it exists and belongs to the same user."""
        session = self._sessions.get(ticket) if isinstance(ticket, str) else None
        return session if session is not None and session.user == user else None

    def arrive(self, session: Session) -> None:
        """Another page shows this session."""
        with self._lock:
            session.pages += 1
            self._sessions[session.ticket] = session
            self._open[session.page] = session

    def close(self, page: str) -> None:
        """A page was closed or lost its connection. If no other page shows its session within `PATIENCE`, the visitor
        has left."""
        with self._lock:
            session = self._open.pop(page, None)
        if session is not None:
            timer = threading.Timer(PATIENCE, self._left, [weakref.ref(session)])
            timer.daemon = True
            timer.start()

    def _left(self, reference: weakref.ref[Session]) -> None:
        session = reference()
        with self._lock:
            is_closed = session is not None and session not in self._open.values()
        if session is not None and is_closed:
            self._leave(session.owner)

    def leave(self, session: Session) -> bool:
        """Gradio has dropped a page that showed it. Returns whether it was the last."""
        with self._lock:
            session.pages -= 1
            return session.pages <= 0
