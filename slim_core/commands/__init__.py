# SPDX-License-Identifier: Apache-2.0
"""Groups of commands, one file each; `slim_core.cli` puts them together."""
