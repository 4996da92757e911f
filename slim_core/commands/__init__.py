# SPDX-License-Identifier: Apache-2.0
"""Commands with options of their own, one a file."""
