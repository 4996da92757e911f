# SPDX-License-Identifier: Apache-2.0
"""Gradio's queue outlives visitors who leave while they wait in it."""

from gradio.queueing import Event
from gradio_client import Client

from slim_core.webui.backend import Backend
from slim_core.webui.config import Config
from slim_core.webui.launch import launch
from slim_core.webui.layout import build
from tests.ui.conftest import free_port
from tests.ui.scripted import ScriptedEngine


def test_who_leaves_while_they_wait_stops_nobody_else():
    config = Config(port=free_port())
    demo = build(Backend(ScriptedEngine()), config)
    launch(demo, config, prevent_thread_lock=True, quiet=True)
    try:
        queue = demo._queue  # Gradio's, which has no public name
        fn = next(fn for fn in demo.fns.values() if fn.api_name == "compare")
        # Two events of a session whose messages are gone: as the first is started, the second still waits.
        gone = [Event("gone", fn, None, None) for _ in range(2)]
        client = Client(demo.local_url, verbose=False)
        queue.create_event_queue_for_fn(fn)
        queue.event_queue_per_concurrency_id[fn.concurrency_id].queue.extend(gone)
        answer = client.submit("Hi", max_new_tokens=4, api_name="/compare").result(timeout=20)
        assert answer["base"]["text"].startswith("Base")
    finally:
        demo.close(verbose=False)
