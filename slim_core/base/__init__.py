# SPDX-License-Identifier: Apache-2.0
"""One causal language model: its config and files, how it is loaded, what it takes, and how it reads conversations."""
