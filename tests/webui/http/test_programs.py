# SPDX-License-Identifier: Apache-2.0
"""Programs are answered at /v1 beside the page, on the same engine and in the same places."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import openai
import pytest

from slim_core.serving.openai_api import openai_api
from slim_core.webui.backend import Backend
from slim_core.webui.config import Config
from slim_core.webui.http.programs import Programs
from slim_core.webui.launch import launch
from slim_core.webui.layout import build
from tests.ui.conftest import free_port
from tests.ui.scripted import RESULTS, ScriptedEngine


@pytest.fixture
def served() -> Iterator[Callable[..., tuple[str, ScriptedEngine]]]:
    """Starts the app with settings; its address and engine."""
    apps = []

    def start(places: int = 16, **settings) -> tuple[str, ScriptedEngine]:
        engine, config = ScriptedEngine(), Config(port=free_port(), **settings)
        backend = engine.backend = Backend(engine, places=places)
        app = build(backend, config, RESULTS)
        app.programs = openai_api(Programs(backend, 64), config.api_key or None, config.api_closed)
        apps.append(app)
        launch(app, config, prevent_thread_lock=True, quiet=True)
        return f"http://127.0.0.1:{config.port}", engine

    yield start
    for app in apps:
        app.close()


def client(url: str, key: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0)


def ask(caller: openai.OpenAI, **options):
    messages = [{"role": "user", "content": "Hello there"}]
    return caller.chat.completions.create(model="lora", messages=messages, temperature=0, **options)


def test_the_page_and_the_api_are_served_together(served):
    url, engine = served()
    assert ask(client(url)).choices[0].message.content.startswith("LoRA says: turn1")
    text = "".join(piece.choices[0].delta.content or "" for piece in ask(client(url), stream=True))
    assert text.startswith("LoRA says: turn1")
    assert "gradio" in httpx.get(url).text
    assert [model.id for model in client(url).models.list()] == ["base", "lora", "slim"]
    assert httpx.get(f"{url}/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert engine.closed == engine.runs == 2


def test_programs_take_the_places_of_visitors(served):
    url, engine = served(places=1)
    engine.delay = {"lora": 0.2}
    stream = ask(client(url), stream=True)
    next(stream)
    with pytest.raises(openai.RateLimitError, match="Try again"):
        ask(client(url))
    stream.close()


def test_a_program_that_takes_all_places_keeps_no_visitor_away(served):
    url, engine = served(places=4)
    engine.delay = {"lora": 0.2}
    streams = [ask(client(url), stream=True) for _ in range(4)]
    for stream in streams[:1]:
        next(stream)
    with pytest.raises(openai.RateLimitError, match="Try again"):
        ask(client(url))
    engine.backend.enter()  # a visitor of the page
    engine.backend.leave()
    for stream in streams:
        stream.close()


@pytest.mark.parametrize(("said", "visitor"), [(None, "127.0.0.1"), ("198.51.100.1, 203.0.113.5", "203.0.113.5")])
def test_programs_of_one_address_are_one_visitor(served, said, visitor):
    """Its own, or the one that a proxy on this machine says."""
    url, engine = served()
    headers = {} if said is None else {"X-Forwarded-For": said}
    ask(client(url), extra_headers=headers)
    call, data = f"{url}/gradio_api/call/compare", {"data": ["Hello", "", 0, 1, 0, 0, 1, 4]}
    started = httpx.post(call, json=data, headers=headers).json()
    events = httpx.get(f"{call}/{started['event_id']}", headers=headers, timeout=60).text
    assert "event: complete" in events
    assert engine.visitors == [visitor] * 2


def test_where_people_sign_in_programs_need_a_key(served):
    url, _ = served(auth_user="me", auth_password="secret")
    with pytest.raises(openai.AuthenticationError, match="whoever runs the app can set SLIM_API_KEY"):
        ask(client(url))


def test_the_key_lets_programs_in(served):
    url, _ = served(auth_user="me", auth_password="secret", api_key="a key")
    with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
        ask(client(url))
    assert ask(client(url, "a key")).choices
