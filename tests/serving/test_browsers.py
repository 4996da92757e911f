# SPDX-License-Identifier: Apache-2.0
"""Scripts of web pages call the API from a browser, if their page's origin is allowed."""

from __future__ import annotations

import httpx
import pytest

from slim_core.serving.openai_api import standalone_api
from slim_core.serving.protocol import EngineService
from slim_core.serving.replicas import replicated_api
from tests.serving.conftest import KEY
from tests.serving.test_openai_api import HELLO


PAGE = "https://chat.example.org"
# What a browser asks before it sends a request with a key.
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}


@pytest.fixture
def url(serve_app, engine):
    """Starts servers that allow pages of these origins."""
    return lambda *origins: serve_app(standalone_api(EngineService(engine, 4, 64), KEY, origins)).url


def ask_from_page(url, **options):
    headers = {"Origin": PAGE, "Authorization": f"Bearer {KEY}"}
    return httpx.post(f"{url}/chat/completions", json={"model": "slim", "messages": HELLO, **options}, headers=headers)


@pytest.mark.parametrize(("origins", "allowed"), [((PAGE, "http://localhost:3000"), PAGE), (("*",), "*")])
def test_a_page_that_is_allowed_gets_answers(url, origins, allowed):
    server = url(*origins)
    # The question before has no key.
    before = httpx.options(f"{server}/chat/completions", headers=PREFLIGHT)
    assert before.status_code == 200 and before.headers["access-control-allow-origin"] in (PAGE, allowed)
    names = before.headers["access-control-allow-headers"].replace(" ", "").split(",")
    assert {"authorization", "content-type", "x-stainless-lang"} <= set(names)
    for stream in (False, True):
        response = ask_from_page(server, stream=stream)
        assert response.status_code == 200 and response.headers["access-control-allow-origin"] == allowed
        assert "access-control-allow-credentials" not in response.headers
    # It may read what is wrong, too.
    refused = ask_from_page(server, n=100)
    assert refused.status_code == 400 and refused.headers["access-control-allow-origin"] == allowed
    assert httpx.get(f"{server}/models", headers={"Origin": PAGE}).headers["access-control-allow-origin"] == allowed


@pytest.mark.parametrize("origins", [(), ("https://another.example.org",)])
def test_other_pages_get_none(url, origins):
    server = url(*origins)
    assert httpx.options(f"{server}/chat/completions", headers=PREFLIGHT).status_code >= 400
    assert "access-control-allow-origin" not in ask_from_page(server).headers


def test_replicas_are_called_from_pages_too(serve_app):
    def nobody(call):
        raise AssertionError("a preflight is for no replica")

    url = serve_app(replicated_api(nobody, 8, KEY, [PAGE])).url
    before = httpx.options(f"{url}/chat/completions", headers=PREFLIGHT)
    assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, PAGE)
