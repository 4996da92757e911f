# SPDX-License-Identifier: Apache-2.0
"""SLIM: fine-tune a language model without making it forget. Importing this package registers SLIM with PEFT.

PEFT and torch take seconds to import, so nothing is imported here before it is used: the names below come with their
first use, and SLIM is registered with PEFT when PEFT is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import registration


if TYPE_CHECKING:
    from . import method as method
    from .method import SlimConfig, SlimModel, extra_losses, set_gate, turn_opening
    from .peft_tools import export_lora, fold_masks, load_lora, slice_factors, trace_routing

    __version__: str


__all__ = [
    "SlimConfig",
    "SlimModel",
    "export_lora",
    "extra_losses",
    "fold_masks",
    "load_lora",
    "set_gate",
    "slice_factors",
    "trace_routing",
    "turn_opening",
]

# The others are the method's.
AROUND_THE_METHOD = {"export_lora", "fold_masks", "load_lora", "slice_factors", "trace_routing"}

registration.with_peft()


if not TYPE_CHECKING:  # otherwise a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name in __all__:
            package = ".peft_tools" if name in AROUND_THE_METHOD else ".method"
            return getattr(import_module(package, __name__), name)
        if name == "method":
            return import_module(".method", __name__)
        if name == "__version__":
            return _version()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__", "method"})


def _version() -> str:
    """Of the installed distribution; a checkout that is not installed has none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("slim-core")
    except PackageNotFoundError:
        return "0+checkout"
