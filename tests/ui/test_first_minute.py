# SPDX-License-Identifier: Apache-2.0
"""What a visitor meets first: examples that answer at one click, what was measured, the way to their own model."""

import re
from dataclasses import replace

import pytest
from playwright.sync_api import expect

from slim_core.demo.stored import load_examples
from slim_core.paths import DEMO
from slim_core.webui.tabs.own_model import COMMANDS
from tests.ui.conftest import Site
from tests.ui.scripted import RESULTS, ScriptedEngine


CAPITAL, POEM = "What is the capital of Peru?", "Write a poem about dragons."


def bubbles(v):
    return v.page.locator(".slim-bubble")


def test_an_example_is_asked_at_one_click(v):
    v.prompt.fill("A draft")
    v.button(CAPITAL).click()
    expect(bubbles(v)).to_have_text([CAPITAL])
    v.done()
    expect(v.text("slim")).to_contain_text("What is the capital")
    expect(v.prompt).to_have_value("A draft")


def test_examples_make_room_for_each_other(v):
    for prompt in (CAPITAL, POEM, POEM):
        v.button(prompt).click()
        expect(bubbles(v)).to_have_text([prompt])
        v.done()
        # Nothing was said before it.
        expect(v.text("base")).to_contain_text("turn1")
    expect(v.page.locator(".toast-body")).to_have_count(0)


def test_an_example_takes_no_conversation_away(v):
    v.ask("My own question")
    v.button(CAPITAL).click()
    expect(bubbles(v)).to_have_text(["My own question", CAPITAL])
    expect(v.warning).to_contain_text("the next turn of your conversation")
    v.done()
    expect(v.text("base")).to_contain_text("turn2")


def test_an_example_waits_for_answers_that_are_written(v, site):
    site.engine.delay, site.engine.length = dict.fromkeys(("base", "lora", "slim"), 0.1), 600
    v.button(CAPITAL).click()
    expect(v.state("base")).to_have_text("writing")
    v.button(POEM).click()
    expect(v.warning).to_contain_text("still being written")
    expect(bubbles(v)).to_have_text([CAPITAL])
    v.button("Stop all").click()
    v.done()


@pytest.fixture
def of_demo():
    """A fast app that takes itself for the demo."""
    engine = ScriptedEngine()
    engine.info = replace(engine.info, name="SLIM demo")
    app = Site(engine, RESULTS)
    yield app
    app.close()


def test_pairs_are_asked_in_both_forms_here_and_under_routing(visit, of_demo):
    (trained, own), *_ = load_examples(DEMO)[0]
    v = visit(url=of_demo.url)
    pair = v.page.locator("#slim-ex-examples .slim-pair").nth(1)
    left, right = pair.locator(".slim-example").all()
    # The whole form is shown.
    expect(left).to_have_text(trained.prompt)
    expect(right).to_have_text(own.prompt)
    assert left.bounding_box()["y"] == right.bounding_box()["y"]
    expect(pair.locator(".slim-note")).to_have_text(
        [re.compile(f"^You should see, in a new conversation: {colour}") for colour in ("orange", "blue")]
    )
    left.click()
    expect(bubbles(v)).to_have_text([trained.prompt])
    v.done()
    v.tab("Routing")
    v.page.locator("#slim-ask-0-1").click()
    expect(v.page.get_by_label("for prompt").locator("option:checked")).to_have_text(f"1. {own.prompt}")
    expect(v.page.locator("#slim-routing .slim-heat canvas")).to_be_visible()


def test_other_models_get_plain_questions(v):
    expect(v.button(CAPITAL)).to_be_visible()
    expect(v.page.get_by_role("heading", name=re.compile("trained"))).to_have_count(0)
    expect(v.page.get_by_text("You should see")).to_have_count(0)


def test_what_was_measured_stands_on_the_first_page_and_leads_to_the_rest(v):
    line = v.page.locator("#slim-headline")
    expect(line).to_contain_text("LoRA falls from 85% to 25% on everything else; SLIM keeps 78%.")
    line.get_by_role("button", name="All scores").click()
    expect(v.page.locator("#slim-forgetting .slim-sentence")).to_be_visible()


@pytest.mark.parametrize("width", [1280, 390])
def test_commands_for_ones_own_model_can_be_copied(visit, width):
    v = visit(width=width)
    card = v.page.locator("#slim-own details")
    expect(card).to_have_attribute("open", "") if width > 400 else expect(card).not_to_have_attribute("open", "")
    if width < 400:
        card.locator("summary").click()
    expect(card.locator("code")).to_have_text([command for _, command in COMMANDS])
    title, command = COMMANDS[2]
    v.button(f"Copy the command: {title}").click()
    expect(v.status).to_have_text("The command is copied.")
    assert v.page.evaluate("navigator.clipboard.readText()") == command
    assert v.width()[0] <= width
