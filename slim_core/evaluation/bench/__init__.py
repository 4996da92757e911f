# SPDX-License-Identifier: Apache-2.0
"""Measurements of speed and memory. What is compared is measured in turn; ratios are taken within a round."""
