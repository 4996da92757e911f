# SPDX-License-Identifier: Apache-2.0
"""The Drift tab: how much less likely each variant finds the base's own answer."""

from __future__ import annotations

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .page import Page


def build(page: Page) -> None:
    """Lay the tab out; the Compare tab fills it."""
    page.drift.render()
