# SPDX-License-Identifier: Apache-2.0
import os


# Read when huggingface_hub is imported, so before any other import of a test.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
