# SPDX-License-Identifier: Apache-2.0
"""What a command line asks of the gates of its adapters."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..inference import EngineError, Variant, check_quantile


def gated_variants(
    variants: Sequence[Variant], strengths: Sequence[float], quantiles: Sequence[float]
) -> list[Variant]:
    """The variants that have a gate, of which these numbers were asked.

    Raises:
        EngineError: if there is none, or one of the numbers is not possible for one of them.
    """
    gated = [variant for variant in variants if variant.strength is not None]
    for flag, numbers in (("strength", strengths), ("quantile", quantiles)):
        if numbers and not gated:
            raise EngineError(f"No adapter here has a gate, so a {flag} has no effect.")
    for strength in strengths:
        if not 0 <= strength < math.inf:
            raise EngineError(f"The strength is {strength:g}; it must be 0 or more.")
    for quantile in quantiles:
        for variant in gated:
            try:
                check_quantile(quantile, variant.quantiles, variant.name)
            except ValueError as error:
                raise EngineError(str(error)) from None
    return gated
