# SPDX-License-Identifier: Apache-2.0
"""The adapters and private folders of the adapters' tests."""

from tests.adapters.conftest import good_lora, good_slim, nothing_left, private


__all__ = ["good_lora", "good_slim", "nothing_left", "private"]
