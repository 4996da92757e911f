# SPDX-License-Identifier: Apache-2.0
"""Between the network and Gradio: checks of requests, and messages for invalid ones."""
