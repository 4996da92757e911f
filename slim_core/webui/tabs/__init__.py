# SPDX-License-Identifier: Apache-2.0
"""The tabs of the page, one file each, and parts that several of them share."""
