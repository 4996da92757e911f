# SPDX-License-Identifier: Apache-2.0
"""Open WebUI's page shows what the API answers; see `tests/serving/test_open_webui.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.serving.open_webui import MODELS, OpenWebUI, needs_open_webui, running
from tests.ui.visit import WINDOW


pytestmark = needs_open_webui
FIRST, SECOND = "What is the capital of France?", "What is 7 + 8?"


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Iterator[OpenWebUI]:
    with running(tmp_path_factory.mktemp("open-webui")) as program:
        yield program


@pytest.fixture
def chat(program, browser):
    """Opens a chat with some models."""
    pages = []

    def begin(*models: str, **params: Any) -> Page:
        # Without what is new in this version, which would lie over the chat.
        version = program.client.get("/api/config").json()["version"]
        settings = {"ui": {"version": version, "params": {"temperature": 0} | params}}
        assert program.client.post("/api/v1/users/user/settings/update", json=settings).status_code == 200
        page = browser.new_page(viewport=WINDOW)
        pages.append(page)
        page.add_init_script(f"localStorage.token = {program.token!r}")
        page.goto(f"{program.client.base_url}/?models={','.join(models)}")
        return page

    yield begin
    for page in pages:
        page.close()


def ask(page: Page, question: str) -> None:
    page.locator("#chat-input").click()
    page.keyboard.type(question)
    page.keyboard.press("Enter")


def answers(page: Page) -> Any:
    return page.locator("#response-content-container")


def test_all_three_side_by_side_and_a_second_turn(program, chat):
    page = chat(*MODELS)
    messages = {model: [] for model in MODELS}
    shown = []
    for question in (FIRST, SECOND):
        ask(page, question)
        for model in MODELS:
            messages[model] += [{"role": "user", "content": question}]
            shown.append(program.direct(model, messages[model]))
            messages[model] += [{"role": "assistant", "content": shown[-1]}]
        expect(answers(page)).to_have_text(shown)


def test_again_and_further(program, chat):
    page = chat("slim", max_tokens=5)
    whole = program.direct("slim", [{"role": "user", "content": SECOND}])
    ask(page, SECOND)
    expect(page.get_by_label("Continue Response")).to_be_visible()
    begun = answers(page).inner_text()
    assert whole.startswith(begun) and begun != whole
    page.get_by_label("Continue Response").click()
    expect(answers(page)).not_to_have_text(begun)
    assert whole.startswith(answers(page).inner_text())


def test_its_tools_are_refused_unless_they_are_switched_off(chat):
    page = chat("slim", function_calling="native")
    ask(page, FIRST)
    expect(answers(page)).to_have_text("This server does not support tools; leave it out.")
