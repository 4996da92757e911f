# SPDX-License-Identifier: Apache-2.0
"""What libraries say to each other, and not to who runs a command."""

from __future__ import annotations

import warnings


def hush() -> None:
    """Suppress warnings that users cannot do anything about; all others stay."""
    # PEFT asks transformers for an old name.
    warnings.filterwarnings("ignore", r"`is_gradient_checkpointing` is deprecated", FutureWarning)
