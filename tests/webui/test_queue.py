# SPDX-License-Identifier: Apache-2.0
"""Gradio's queue and sessions outlive visitors who leave while they wait, and programs that call often."""

import pytest
from gradio.queueing import Event
from gradio_client import Client
from gradio_client.exceptions import AppError

from slim_core.webui.backend import Backend
from slim_core.webui.config import Config
from slim_core.webui.launch import launch
from slim_core.webui.layout import build
from tests.ui.conftest import free_port
from tests.ui.scripted import ScriptedEngine
from tests.waiting import until


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


def test_calls_of_programs_push_no_visitor_out():
    config = Config(port=free_port(), sessions=2)
    demo = build(Backend(ScriptedEngine()), config)
    launch(demo, config, prevent_thread_lock=True, quiet=True)
    try:
        visitor = demo.state_holder["visitor"]
        visitor.state_data[0] = "what a page keeps"
        for _ in range(3):
            # Each client is a session of its own.
            client = Client(demo.local_url, verbose=False)
            assert client.submit("Hi", max_new_tokens=4, api_name="/compare").result(timeout=20)
            with pytest.raises(AppError, match="prompt"):
                client.predict("", api_name="/compare")
        until(lambda: dict(demo.state_holder.session_data) == {"visitor": visitor})
    finally:
        demo.close(verbose=False)
