# SPDX-License-Identifier: Apache-2.0
"""The tiny base of the engine's tests."""

from tests.inference.conftest import folders


__all__ = ["folders"]
