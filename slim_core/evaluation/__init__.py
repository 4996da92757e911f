# SPDX-License-Identifier: Apache-2.0
"""Measurements: speed of a layer now; tasks and forgetting reports later."""
