# SPDX-License-Identifier: Apache-2.0
"""Between the network and Gradio: what a request may be and bring, and what is said of one that is wrong."""
