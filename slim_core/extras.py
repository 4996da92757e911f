# SPDX-License-Identifier: Apache-2.0
"""Packages that only part of the project needs, and the message if one is missing."""

from __future__ import annotations

from importlib.util import find_spec


# The extra of this distribution that brings a package.
EXTRAS = {
    "gradio": "app",
    "fastapi": "api",
    "uvicorn": "api",
    "datasets": "train",
    "pyarrow": "train",
    "bitsandbytes": "quant",
    "gguf": "gguf",
}


def lacking(package: str, what: str) -> str | None:
    """The sentence that says what to install; None if the package is installed.

    Args:
        package: one of `EXTRAS`.
        what: needs it, as the sentence begins.
    """
    if find_spec(package) is not None:
        return None
    return f'{what} needs {package}; install it with: pip install "slim-core[{EXTRAS[package]}]"'
