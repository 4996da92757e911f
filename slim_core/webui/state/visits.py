# SPDX-License-Identifier: Apache-2.0
"""Conversations by ticket: to Gradio a page that is loaded again is a new one; with its ticket it continues."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from .session import Session


class Visits:
    """The sessions of all pages, for as long as Gradio keeps them."""

    def __init__(self) -> None:
        self._sessions: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()
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

    def leave(self, session: Session) -> bool:
        """Gradio has dropped a page that showed it. Returns whether it was the last."""
        with self._lock:
            session.pages -= 1
            return session.pages <= 0
