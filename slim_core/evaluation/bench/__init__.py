# SPDX-License-Identifier: Apache-2.0
"""Measurements of speed and memory. What is compared takes turns in one run; what counts are ratios within a round."""
