# SPDX-License-Identifier: Apache-2.0
"""The longer commands of `python -m slim_core`, one file each."""
