# SPDX-License-Identifier: Apache-2.0
"""The app, as Hugging Face Spaces and `python app.py` start it. Settings are environment variables: docs/deploy.md."""

import os
import sys


# Must be imported before torch: on ZeroGPU `spaces` replaces CUDA; elsewhere it is not installed.
try:
    import spaces
except ImportError:
    spaces = None

from slim_core.blas import one_thread_for_numpy
from slim_core.noise import hush
from slim_core.serving.memory import limit_arenas
from slim_core.webui.config import Config, ConfigError
from slim_core.webui.ready import check_start


hush()
one_thread_for_numpy()
limit_arenas()
try:
    if __name__ == "__main__" and len(sys.argv) > 1:
        raise ConfigError(
            f"{sys.argv[1]!r} is not understood: app.py has no arguments. Use python -m slim_core serve, or SLIM_ "
            "variables."
        )
    config = Config.read()
    for warning in check_start(config):
        print(f"Warning: {warning}", file=sys.stderr)
except ConfigError as error:
    sys.exit(f"Error: {error}")

# Importing torch, transformers and Gradio is slow, so everything that can be checked without them was checked first.
from slim_core.inference import EngineError  # noqa: E402
from slim_core.webui.launch import launch, open_app  # noqa: E402


try:
    # `spaces` may be installed on any machine, but only ZeroGPU assigns a GPU per call.
    zero_gpu = spaces and os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
    demo = open_app(config, spaces.GPU if zero_gpu else None)
    if __name__ == "__main__":
        launch(demo, config)
except (ConfigError, EngineError) as error:
    sys.exit(f"Error: {error}")
