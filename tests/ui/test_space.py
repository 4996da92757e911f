# SPDX-License-Identifier: Apache-2.0
"""Where things stand: wide windows are used, the latest turn is near the composer, a phone shows examples first; and
nothing is there that says or does nothing."""

import pytest
from playwright.sync_api import expect


def box(locator):
    return locator.bounding_box()


def bottom(locator):
    area = box(locator)
    return area["y"] + area["height"]


def turns_below_one_another(v, count):
    for number in range(count):
        v.ask(f"Prompt {number}")


def test_a_wide_window_is_used(visit):
    v = visit(width=1920, height=1080)
    v.ask("Hello there")
    answers = [box(v.answer(name)) for name in ("base", "lora", "slim")]
    assert answers[0]["x"] <= 40 and answers[2]["x"] + answers[2]["width"] >= 1880
    assert sum(answer["width"] for answer in answers) > 1750
    v.tab("Routing")
    map_of_tokens = box(v.page.locator(".slim-heat canvas"))
    assert map_of_tokens["width"] > 1600


@pytest.mark.nightly
def test_each_layer_is_as_full_as_the_experts(visit):
    v = visit(width=1920, height=1080)
    v.ask("Hello there")
    v.tab("Routing")
    layers, experts = v.page.locator(".slim-bars"), v.page.locator(".slim-use")
    expect(layers.locator(".slim-bar")).to_have_count(4)
    expect(experts.locator(".slim-bar")).to_have_count(10)
    # Four rows reach as far down as ten.
    assert abs(bottom(layers.locator(".slim-bar").last) - bottom(experts.locator(".slim-bar").last)) < 40


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_after_six_turns_the_latest_one_is_in_view_and_so_is_the_composer(visit, width, height):
    v = visit(width=width, height=height)
    turns_below_one_another(v, 6)
    composer = v.page.locator("#slim-composer")
    assert box(composer)["y"] > 0 and bottom(composer) <= height + 1
    latest = v.page.locator(".slim-turn").last
    # All of it, or its prompt at the top where it is taller than the window.
    if box(latest)["height"] < box(composer)["y"] - 24:
        assert bottom(latest) <= box(composer)["y"] and box(latest)["y"] >= 0
    else:
        assert 0 <= box(latest)["y"] <= 24
    expect(v.prompt).to_be_in_viewport(ratio=1)
    # Scrolled to the very top, the composer is still there.
    v.page.evaluate("scrollTo(0, 0)")
    expect(v.prompt).to_be_in_viewport(ratio=1)


@pytest.mark.nightly
def test_who_reads_further_up_is_left_there(visit, site):
    v = visit(height=500)
    turns_below_one_another(v, 3)
    site.engine.delay, site.engine.length = dict.fromkeys(("base", "lora", "slim"), 0.05), 400
    v.send("A long one")
    expect(v.state("base")).to_have_text("writing")
    v.page.mouse.move(300, 200)
    v.page.mouse.wheel(0, -5000)
    v.page.wait_for_function("scrollY === 0")
    before = v.tokens("base")
    v.page.wait_for_timeout(1000)
    assert v.tokens("base") > before
    assert v.page.evaluate("scrollY") == 0
    site.engine.delay = {}
    v.done()


def test_a_phone_shows_the_examples_first(visit):
    v = visit(width=390, height=844)
    expect(v.page.locator(".slim-example").first).to_be_in_viewport(ratio=1)
    assert bottom(v.page.locator(".slim-example").nth(3)) < 844
    # What is said of the columns comes with the first answers.
    expect(v.page.locator(".slim-size").first).to_be_hidden()
    v.ask("Hello")
    expect(v.page.locator(".slim-size").first).to_be_visible()
    expect(v.button("Hide SLIM")).to_be_visible()


def test_what_can_do_nothing_is_not_there(v):
    for name in ("Retry all", "Undo", "New conversation", "Export JSON"):
        expect(v.button(name)).to_have_count(0)
    expect(v.page.get_by_label("Differences from base")).to_have_count(0)
    v.ask("Hello")
    for name in ("Retry all", "Undo", "New conversation", "Export JSON"):
        expect(v.button(name)).to_be_enabled()
    expect(v.page.get_by_label("Differences from base")).to_be_visible()
    v.tab("Routing")
    expect(v.page.get_by_label("Routing of")).to_be_visible()
    expect(v.page.get_by_label("for prompt")).to_be_hidden()
    v.tab("Model")
    expect(v.page.locator("#slim-base, #slim-precision")).to_have_count(0)


def test_what_says_nothing_is_not_there(v):
    v.ask("Hello")
    expect(v.answer("base").locator(".slim-summary")).to_be_empty()
    expect(v.answer("slim").locator(".slim-summary")).to_contain_text("% of the answer past LoRA")
    expect(v.answer("lora").locator(".slim-summary")).to_contain_text("times less likely")
    assert "past LoRA" not in v.answer("lora").inner_text()
    v.tab("About")
    expect(v.page.locator("#slim-facts")).to_contain_text("Versions")
    expect(v.page.locator("#slim-facts")).not_to_contain_text("Memory")
    v.tab("Model")
    expect(v.page.get_by_role("heading", name="Memory")).to_have_count(1)
