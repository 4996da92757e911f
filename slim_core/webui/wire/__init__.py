# SPDX-License-Identifier: Apache-2.0
"""What goes over the wire: sessions as plain values for the page, files of conversations, and the API."""
