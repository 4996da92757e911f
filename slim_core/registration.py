# SPDX-License-Identifier: Apache-2.0
"""SLIM and the methods to compare it with are registered when PEFT is imported, without importing PEFT for that."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import logging
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


# As soon as the first of a pair has been imported, the second is imported, and registers itself with PEFT.
NEXT = {"peft": "slim_core.method", "slim_core.method": "slim_core.baselines"}


def with_peft() -> None:
    """Register all methods now if PEFT is imported already, otherwise when it is imported."""
    sys.meta_path.insert(0, _Finder())
    if "peft" in sys.modules:
        import_module(NEXT["peft"])


class _Finder:
    """An import finder that imports the next package as soon as one of `NEXT` has been imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in NEXT:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_go_on(module: ModuleType) -> None:
            if fullname == "peft":
                _hush_bitsandbytes()
            execute(module)
            import_module(NEXT[fullname])

        spec.loader.exec_module = execute_and_go_on  # type: ignore[method-assign]  # of this one loader, used once
        return spec


def _hush_bitsandbytes() -> None:
    """PEFT imports bitsandbytes, which on some processors warns that it could not fetch machine code from the Hub.

    The warning is irrelevant: nothing depends on it, and no code from the Hub is run here.
    """
    import logging

    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_no_offer)


def _is_no_offer(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward from kernels-community")
