# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of the Linears an adapter sits on: whether a base model is the one an adapter was made for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import nn

from .targets import features, is_supported


Fingerprint = dict[str, str]


def fingerprint(targets: list[str], modules: dict[str, nn.Module]) -> Fingerprint:
    """Shapes by name, with the numbers in a name (block indices) replaced by `*`.

    Args:
        targets: names of the adapted Linears.
        modules: all modules of the base model by name. Linears with the name of a target in another block count too,
            so that a base with more blocks differs even if the adapter names its blocks one by one.

    Returns:
        For each name how many there are of which shape, such as `"32 x (4096 -> 1024)"`, inputs first.
    """
    patterns = {_pattern(name) for name in targets}
    named = {name: module for name, module in modules.items() if _pattern(name) in patterns}
    # In a base whose blocks are of several kinds the same name may be that of something else.
    linears = {name: features(module) for name, module in named.items() if is_supported(module)}
    return fingerprint_of_shapes(targets, linears)


def fingerprint_of_shapes(targets: Iterable[str], linears: Mapping[str, tuple[int, int]]) -> Fingerprint:
    """The same without a model, from the (C_in, C_out) of the base's Linears by name."""
    patterns = {_pattern(name) for name in targets}
    shapes: dict[str, Counter[tuple[int, int]]] = {}
    for name, shape in linears.items():
        if (pattern := _pattern(name)) in patterns:
            shapes.setdefault(pattern, Counter())[shape] += 1
    return {
        pattern: " + ".join(f"{number} x ({c_in} -> {c_out})" for (c_in, c_out), number in sorted(counted.items()))
        for pattern, counted in sorted(shapes.items())
    }


def _pattern(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def difference(saved: Fingerprint, actual: Fingerprint) -> str | None:
    """One sentence about the first difference between an adapter's base and this one; None if they agree."""
    for pattern, shapes in saved.items():
        if pattern not in actual:
            return f"The adapter sits on `{pattern}`, {shapes}; this base model has no such Linear."
        if actual[pattern] != shapes:
            return f"The adapter was made for `{pattern}`, {shapes}; this base model has {actual[pattern]}."
    for pattern, shapes in actual.items():
        if pattern not in saved:
            return (
                f"This base model has `{pattern}`, {shapes}, which the adapter targets by name but was not made for."
            )
    return None
