# SPDX-License-Identifier: Apache-2.0
"""A visitor's own Hub id for a base: fetched without a token, stopped, fetched again; from a Hub on this machine."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from slim_core.demo.chat import train_tokenizer
from slim_core.webui.config import Config
from slim_core.webui.launch import open_backend
from tests.inference.conftest import TEXTS, tiny_base
from tests.outside.hub_server import Hub, serve
from tests.outside.online import online, use_hub
from tests.ui.conftest import Site
from tests.ui.visit import SECONDS


__all__ = ["online"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that has `me/base`, in place of the one on the net."""
    tiny_base(num_hidden_layers=3).save_pretrained(tmp_path / "base")
    train_tokenizer(TEXTS).save_pretrained(tmp_path / "base")
    with serve(Hub({path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()})) as running:
        use_hub(running.url, monkeypatch)
        yield running


@pytest.fixture
def anything(tmp_path):
    """An app whose visitors may name any Hub id."""
    first = tmp_path / "first"
    tiny_base().save_pretrained(first)
    train_tokenizer(TEXTS).save_pretrained(first)
    site = Site(open_backend(Config(base=str(first), device="cpu", models="*"), tmp_path / "no-demo"))
    yield site
    site.close()


def banner(v):
    return v.page.locator(".slim-banner")


def test_a_visitors_own_base_is_looked_for_stopped_and_fetched_again(visit, hub, anything):
    v = visit(url=anything.url, query={"max_new_tokens": 6})
    v.tab("Model")
    box = v.page.locator("#slim-base input")
    box.fill("me/nothing")
    box.press("Enter")
    hub.way = "missing"
    v.button("Load").click()
    expect(banner(v)).to_contain_text("me/nothing does not exist on the Hub", timeout=30 * SECONDS)
    expect(v.page.locator("#slim-loaded")).to_contain_text("2 layers")
    box.fill("me/base")
    box.press("Enter")
    expect(box).to_have_value("me/base")
    hub.way = "trickle"
    v.button("Load").click()
    expect(banner(v)).to_contain_text("fetching its files", timeout=30 * SECONDS)
    expect(banner(v)).to_contain_text(" of ")
    v.button("Stop loading").click()
    expect(banner(v)).to_contain_text("stopped", timeout=30 * SECONDS)
    expect(v.page.locator("#slim-loaded")).to_contain_text("2 layers")
    hub.way = ""
    v.button("Load").click()
    expect(banner(v)).to_contain_text("The base is me/base now", timeout=60 * SECONDS)
    expect(v.page.locator("#slim-loaded")).to_contain_text("3 layers")
    v.tab("Compare")
    v.ask("What is the capital of Peru?")
    # The operator's token is nobody else's.
    assert hub.asked and not any("authorization" in headers for _, _, headers in hub.asked)
