# SPDX-License-Identifier: Apache-2.0
"""Answers for programs: what a server asks of an engine, and OpenAI's protocol on top of it."""
