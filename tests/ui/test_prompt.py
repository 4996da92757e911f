# SPDX-License-Identifier: Apache-2.0
"""The prompt's box: what a visitor types is never lost."""

import time

import pytest
from playwright.sync_api import expect

from slim_core.webui.limits import MAX_CHARACTERS


@pytest.fixture
def slow(site):
    """A server that takes its time to read a prompt."""
    count = site.engine.count_tokens

    def wait(messages):
        time.sleep(1)
        return count(messages)

    site.engine.count_tokens = wait
    yield
    del site.engine.count_tokens


def test_what_is_typed_right_after_sending_is_the_next_prompt(v, slow):
    v.prompt.focus()
    v.page.keyboard.type("One")
    v.page.keyboard.press("Enter")
    v.page.keyboard.type("Two", delay=5)
    expect(v.page.locator(".slim-turn")).to_have_count(1)
    v.page.keyboard.type(" three")
    v.done()
    expect(v.page.locator(".slim-bubble")).to_have_text("One")
    expect(v.prompt).to_have_value("Two three")
    expect(v.prompt).to_be_focused()
    v.button("Compare").click()
    expect(v.prompt).to_have_value("")
    expect(v.page.locator(".slim-bubble").nth(1)).to_have_text("Two three")
    v.done()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("   ", "Write a prompt first."),
        ("a\u0007b", "control character (U+0007) at position 2"),
        ("word " * 4100, "has 4,100 tokens; this model reads at most 4,096"),
        ("x" * (MAX_CHARACTERS + 1), "has 100,001 characters; at most 100,000 can be sent"),
    ],
    ids=["empty", "control", "tokens", "characters"],
)
def test_a_refused_prompt_gets_a_sentence_and_goes_back(v, text, sentence):
    v.send(text)
    expect(v.warning).to_contain_text(sentence)
    expect(v.prompt).to_have_value(text)
    expect(v.page.locator(".slim-turn")).to_have_count(0)
    v.ask("a good one")


@pytest.mark.nightly
def test_a_refused_prompt_overwrites_no_draft(visit, slow):
    v = visit()
    v.send("word " * 4100)
    v.page.keyboard.type("Two")
    expect(v.warning).to_contain_text("this model reads at most 4,096")
    v.stands_still()
    expect(v.prompt).to_have_value("Two")


def test_a_prompt_that_never_arrives_goes_back(v):
    v.page.route("**/queue/join*", lambda route: route.fulfill(status=503, json={"detail": "Queue is full."}))
    v.send("One")
    expect(v.warning).to_be_visible()
    expect(v.prompt).to_have_value("One")
    v.page.unroute("**/queue/join*")
    v.prompt.press("Enter")
    expect(v.page.locator(".slim-bubble")).to_have_text("One")
    v.done()
    expect(v.prompt).to_have_value("")


def test_undo_and_a_new_conversation_leave_a_draft_alone(v):
    v.ask("One")
    v.ask("Two")
    v.prompt.fill("A draft")
    v.button("Undo").click()
    expect(v.page.locator(".slim-turn")).to_have_count(1)
    v.button("New conversation").click()
    expect(v.page.locator(".slim-turn")).to_have_count(0)
    v.stands_still()
    expect(v.prompt).to_have_value("A draft")
    v.prompt.press("Enter")
    expect(v.page.locator(".slim-bubble")).to_have_text("A draft")
    v.done()


def test_undo_twice_gives_the_first_prompt_back(v):
    v.ask("One")
    v.ask("Two")
    v.button("Undo").click()
    expect(v.prompt).to_have_value("Two")
    v.button("Undo").click()
    expect(v.prompt).to_have_value("One")
    # It is as if a person had typed it.
    v.prompt.press("Enter")
    expect(v.page.locator(".slim-bubble")).to_have_text("One")
    v.done()
