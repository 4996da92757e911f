# SPDX-License-Identifier: Apache-2.0
"""What the server remembers: a visitor's session and adapters, uploads, and which bases may be chosen."""
