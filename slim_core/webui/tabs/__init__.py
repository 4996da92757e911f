# SPDX-License-Identifier: Apache-2.0
"""The tabs of the page: a file each, and the parts that several of them share."""
