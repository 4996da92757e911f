# SPDX-License-Identifier: Apache-2.0
"""Answers for programs: a server interface to the engine, and OpenAI's protocol on top of it."""
