# SPDX-License-Identifier: Apache-2.0
"""Answers of a base model and its adapters in one batch, who answered which token, and how far they drift."""
