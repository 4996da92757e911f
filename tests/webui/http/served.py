# SPDX-License-Identifier: Apache-2.0
"""The app on the scripted engine, as a process of its own: `python -m tests.webui.http.served PORT NAME=NUMBER …`."""

import sys

from slim_core.webui.backend import Backend
from slim_core.webui.config import Config
from slim_core.webui.launch import launch
from slim_core.webui.layout import build
from tests.ui.scripted import RESULTS, ScriptedEngine


if __name__ == "__main__":
    limits = {name: int(value) for name, _, value in (pair.partition("=") for pair in sys.argv[2:])}
    config = Config(port=int(sys.argv[1]), **limits)
    launch(build(Backend(ScriptedEngine(), places=config.concurrency), config, RESULTS), config)
