# SPDX-License-Identifier: Apache-2.0
"""Data that leave the server: sessions as plain values for the page, conversation files, and the API."""
