# SPDX-License-Identifier: Apache-2.0
"""What comes from outside: files and Hub repositories, read within limits. Nothing in them is ever executed."""
