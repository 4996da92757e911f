# SPDX-License-Identifier: Apache-2.0
"""Commands of `python -m slim_core` that are long enough for files of their own."""
