# SPDX-License-Identifier: Apache-2.0
"""Library warnings that are of no use to users of a command."""

from __future__ import annotations

import warnings


def hush() -> None:
    """Suppress warnings that users cannot do anything about; all others stay."""
    # The message without the line of code that Python adds.
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {' '.join(str(message).split())}\n"
    # PEFT asks transformers for an old name.
    warnings.filterwarnings("ignore", r"`is_gradient_checkpointing` is deprecated", FutureWarning)
