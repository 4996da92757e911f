# SPDX-License-Identifier: Apache-2.0
"""The app, as Hugging Face Spaces and `python app.py` start it. Settings are environment variables: docs/deploy.md."""

import os
import sys


# Before torch is imported: on ZeroGPU `spaces` takes the place of CUDA, elsewhere it is not installed.
try:
    import spaces
except ImportError:
    spaces = None

from slim_core.noise import hush
from slim_core.webui.config import Config, ConfigError
from slim_core.webui.ready import check_start


hush()
try:
    config = Config.read()
    for warning in check_start(config):
        print(f"Warning: {warning}", file=sys.stderr)
except ConfigError as error:
    sys.exit(f"Error: {error}")

# Torch, transformers and Gradio take their time; what can be wrong without them is known by now.
from slim_core.inference import EngineError  # noqa: E402
from slim_core.webui.launch import launch, open_app  # noqa: E402


try:
    # `spaces` may be installed on a machine that has its own GPU or none; only on ZeroGPU there is one to borrow.
    zero_gpu = spaces and os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
    demo = open_app(config, spaces.GPU if zero_gpu else None)
    if __name__ == "__main__":
        launch(demo, config)
except (ConfigError, EngineError) as error:
    sys.exit(f"Error: {error}")
