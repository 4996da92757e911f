# SPDX-License-Identifier: Apache-2.0
"""The variant of each column: the app's own, or a visitor's adapter in its place."""

from __future__ import annotations

from ...inference.types import Variant
from ..backend import Backend
from .session import Session


BASE = "base"
# The columns that an adapter can fill, by the name of the app's own variant for them.
ADAPTERS = {"lora": "Second column", "slim": "Third column"}


def columns(session: Session, backend: Backend) -> dict[str, Variant]:
    """The variants by column, from left to right. Empty columns are left out."""
    loaded = {variant.name: variant for variant in backend.variants} | session.own_variants
    return {name: loaded[name] for name in (BASE, *ADAPTERS) if name in loaded}
