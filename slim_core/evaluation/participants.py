# SPDX-License-Identifier: Apache-2.0
"""Adapters that take part in an evaluation."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ..adapters import OPERATOR, AdapterError, named_source, open_adapter
from ..inference import Engine, EngineError
from ..many import Respondent
from .results import Participant


def attach_adapter(engine: Engine, name: str, source: str) -> Participant:
    """Check an adapter and attach it to the base.

    Args:
        engine: with the base.
        name: of the variant and its column.
        source: folder or Hub id.

    Raises:
        EngineError: if it cannot be used with this base.
    """
    try:
        adapter = open_adapter(named_source(source), engine.shapes, limits=OPERATOR)
    except AdapterError as error:
        raise EngineError(f"The adapter {source} cannot be attached: {error}") from None
    try:
        variant = engine.attach(adapter, name=name, label=name)
    except EngineError as error:
        raise EngineError(f"The adapter {source} cannot be attached: {error}") from None
    finally:
        adapter.delete()
    config = json.dumps(adapter.config.to_dict(), sort_keys=True, default=_plain)
    return Participant(Respondent(name, variant), source, adapter.sha256, hashlib.sha256(config.encode()).hexdigest())


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
