# SPDX-License-Identifier: Apache-2.0
"""Files and Hub repositories from outside, read within limits. Nothing in them is ever executed."""
