# SPDX-License-Identifier: Apache-2.0
"""One causal language model: its config and files, loading, memory needs, and how it reads conversations."""
