# SPDX-License-Identifier: Apache-2.0
"""The paper's tables and figures, and some more, as lists of trainings that anyone can repeat."""
