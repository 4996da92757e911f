# SPDX-License-Identifier: Apache-2.0
"""What the layers of one model record in a training forward, for the losses that are added when it ends."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .experts import Noted


class Notes:
    """Records of the last training forward that noted anything.

    Attributes:
        types: (B,) kinds of the samples of the running forward, 0 or 1; None if not set.
    """

    def __init__(self) -> None:
        self.types: Tensor | None = None
        self._forward: int | None = None
        self._noted: dict[str, list[Noted]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are between forwards."""
        return {"types": None, "_forward": None, "_noted": {}}

    def add(self, forward: int, adapter_name: str, noted: Noted) -> None:
        """Record something of a forward; records of an earlier one are dropped."""
        if forward != self._forward:
            self._forward, self._noted = forward, {}
        self._noted.setdefault(adapter_name, []).append(noted)

    def of(self, adapter_name: str) -> list[Noted]:
        """The records for an adapter."""
        return self._noted.get(adapter_name, [])

    def forget(self, adapter_name: str) -> None:
        """Forget an adapter that was deleted."""
        self._noted.pop(adapter_name, None)
