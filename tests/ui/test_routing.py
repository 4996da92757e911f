# SPDX-License-Identifier: Apache-2.0
"""Who answered which token: strip, heat map, detail, layers, experts, drift, results."""

import math
import re

import pytest
from playwright.sync_api import expect

from tests.waiting import until


def test_token_heat_map_and_detail_are_linked(v):
    v.ask("Hello there")
    v.tab("Routing")
    strip = v.page.get_by_role("listbox", name="Prompt and answer, token by token")
    tokens = strip.get_by_role("option")
    expect(tokens).to_have_count(2 + 11)
    tokens.nth(4).click()
    readout = v.page.locator(".slim-readout")
    expect(readout).to_contain_text("token 5")
    expect(v.page.locator(".slim-cursor")).to_be_visible()
    table = v.page.get_by_role("region", name="Experts of every Linear")
    expect(v.page.locator("#slim-detail h2")).to_contain_text("number 5, answer")
    expect(table.locator("tbody tr")).to_have_count(12)
    expect(table.locator("thead th")).to_have_count(7 + 10)
    # From the heat map back to the strip.
    box = v.page.locator(".slim-heat canvas").bounding_box()
    v.page.mouse.click(box["x"] + box["width"] * (0.5 / 13), box["y"] + 40)
    expect(tokens.nth(0)).to_have_attribute("aria-selected", "true")
    expect(v.page.locator("#slim-detail h2")).to_contain_text("number 1, prompt")
    expect(tokens.nth(4)).to_have_attribute("aria-selected", "false")


def test_arrow_keys_in_strip_and_heat_map(v):
    v.ask("Hello there")
    v.tab("Routing")
    first = v.page.locator("#slim-routing .slim-strip [role=option]").first
    expect(first).to_have_attribute("tabindex", "0")
    first.focus()
    for _ in range(3):
        v.page.keyboard.press("ArrowRight")
    expect(v.page.locator("#slim-detail h2")).to_contain_text("number 4")
    expect(v.page.locator(":focus")).to_have_attribute("aria-label", re.compile("token 4, answer, identity"))
    v.page.get_by_role("application", name="Heat map").focus()
    v.page.keyboard.press("ArrowDown")
    v.page.keyboard.press("ArrowRight")
    expect(v.status).to_contain_text("Layer 1, token 5")
    expect(v.page.locator("#slim-detail h2")).to_contain_text("number 5")


def test_numbers_beside_what_is_pointed_at_or_focused(v):
    v.ask("Hello there")
    v.tab("Routing")
    tip = v.page.locator(".slim-tip")
    tokens = v.page.locator("#slim-routing .slim-strip [role=option]")
    tokens.nth(3).hover()
    expect(tip).to_have_text(tokens.nth(3).get_attribute("aria-label"))
    box = v.page.locator(".slim-heat canvas").bounding_box()
    v.page.mouse.move(box["x"] + box["width"] * (0.5 / 13), box["y"] + 40)
    expect(tip).to_have_text(re.compile(r"Layer 0, token 1 .*: identity \d+%; gate 0\.\d+, distance \d"))
    v.page.mouse.move(1, 1)
    expect(tip).to_be_hidden()
    tokens.first.focus()
    v.page.keyboard.press("ArrowRight")
    expect(tip).to_have_text(tokens.nth(1).get_attribute("aria-label"))
    v.page.keyboard.press("Escape")
    expect(tip).to_be_hidden()


def test_layers_and_experts(visit):
    v = visit()
    v.ask("Hello there")
    v.tab("Routing")
    expect(v.page.locator(".slim-bars .slim-bar")).to_have_count(4)
    expect(v.page.locator(".slim-use .slim-bar")).to_have_count(10)
    expect(v.page.locator(".slim-routing")).to_contain_text("Imbalance of the LoRA experts: 8.00")
    before = v.page.locator(".slim-bars").inner_text()
    v.button("prompt").click()
    expect(v.button("prompt")).to_have_attribute("aria-pressed", "true")
    assert v.page.locator(".slim-bars").inner_text() != before
    v.button("both").click()
    expect(v.page.locator(".slim-routing")).to_contain_text("(both)")
    # A LoRA has none.
    v.page.get_by_label("Routing of").select_option("lora")
    expect(v.page.locator(".slim-routing")).to_contain_text("every token goes through it")
    # All of it would be orange.
    expect(v.page.locator(".slim-heat")).to_be_hidden()
    expect(v.page.locator(".slim-bars")).to_be_hidden()


def test_another_answer_begins_without_a_chosen_token(v):
    v.ask("Hello there")
    v.ask("And here")
    v.tab("Routing")
    tokens = v.page.locator("#slim-routing .slim-strip [role=option]")
    tokens.nth(4).click()
    expect(v.page.locator("#slim-detail h2")).to_contain_text("number 5, prompt")
    # Its prompt's first token is the same.
    v.page.get_by_label("for prompt").select_option(index=0)
    expect(tokens).to_have_count(2 + 11)
    expect(v.page.locator("#slim-detail h2")).to_have_count(0)
    expect(v.page.locator(".slim-cursor")).to_be_hidden()
    expect(v.page.locator("#slim-routing .slim-strip [aria-selected=true]")).to_have_count(0)
    expect(v.page.locator("#slim-routing .slim-strip [tabindex='0']")).to_have_count(1)
    expect(tokens.first).to_have_attribute("tabindex", "0")
    # The strip is whole: the next choice is the only one.
    tokens.nth(2).click()
    expect(v.page.locator("#slim-routing .slim-strip [aria-selected=true]")).to_have_count(1)
    expect(v.page.locator("#slim-routing .slim-strip [tabindex='0']")).to_have_count(1)
    expect(tokens.nth(2)).to_have_attribute("tabindex", "0")


def test_an_earlier_turn_can_be_chosen(v):
    v.ask("One")
    v.ask("Two")
    v.tab("Routing")
    v.page.get_by_label("for prompt").select_option(label="1. One")
    tokens = v.page.locator("#slim-routing .slim-strip [role=option]")
    expect(tokens).to_have_count(1 + 11)
    v.tab("Drift")
    expect(v.page.locator("#slim-drift")).to_contain_text("“One”")


def test_routing_fills_while_the_answer_is_written(visit, site):
    site.engine.delay = dict.fromkeys(("base", "lora", "slim"), 0.05)
    site.engine.length = 2000
    v = visit(query={"max_new_tokens": 2000})
    v.send("Hello")
    v.tab("Routing")
    tokens = v.page.locator("#slim-routing .slim-strip [role=option]")
    for _ in range(4):
        before = tokens.count()
        until(lambda before=before: tokens.count() > before)
    assert tokens.count() < 2000  # it goes on until its visitor leaves


def test_two_thousand_tokens_and_forty_layers_do_not_freeze_the_page(visit, site):
    site.engine.length, site.engine.blocks, site.engine.pace = 2000, 40, 10
    v = visit(query={"max_new_tokens": 2000})
    v.send("Hello")
    v.tab("Routing")
    # The longest time for which the page answered nothing.
    v.page.evaluate(
        """() => { window.longest = 0; let last = performance.now();
        const look = () => { const now = performance.now(); window.longest = Math.max(window.longest, now - last);
        last = now; setTimeout(look, 20); }; look(); }"""
    )
    expect(v.status).to_contain_text("SLIM: done", timeout=120_000)
    tokens = v.page.locator("#slim-routing .slim-strip [role=option]")
    expect(tokens).to_have_count(2000, timeout=30_000)
    tokens.nth(1500).click()
    expect(v.page.locator("#slim-detail h2")).to_contain_text("number 1501")
    # No stopwatch: a page that answers nothing for so long hangs, on the busiest machine too.
    assert v.page.evaluate("window.longest") < 10_000


def test_drift(v):
    v.ask("Hello")
    v.tab("Drift")
    expect(v.page.locator(".slim-sentence").first).to_have_text(
        "LoRA finds the base’s answer 10⁶ times less likely; SLIM finds it 1.11 times less likely."
    )
    strip = v.page.get_by_role("listbox", name="The base’s answer as LoRA reads it")
    expect(strip.get_by_role("option")).to_have_count(12)
    expect(strip.get_by_role("option").first).to_have_attribute(
        "aria-label", re.compile("3.2 times less likely, KL 0.01")
    )
    colours = {"lora": "rgb(222, 110, 10)", "slim": "rgb(37, 99, 205)"}
    assert {kind: bar_colours(v, kind) for kind in colours} == {kind: {colour} for kind, colour in colours.items()}


BAR = """nodes => nodes.map((node) => {
    const [bar, text] = ["i", "span"].map((name) => node.querySelector(name).getBoundingClientRect());
    return {left: bar.left - text.left, right: bar.right - text.right, above: text.top - bar.bottom, line: text.top,
            height: bar.height, colour: getComputedStyle(node.querySelector("i")).backgroundColor}; })"""


def drift_bars(v, kind):
    return v.page.locator(f"#slim-drift [data-kind={kind}] [role=option]").evaluate_all(BAR)


def bar_colours(v, kind):
    return {bar["colour"] for bar in drift_bars(v, kind)}


def test_a_bar_of_the_drift_stands_over_its_token(v, site):
    site.engine.length = 60
    v.ask("Hello")
    v.tab("Drift")
    for width in (1280, 390):
        v.page.set_viewport_size({"width": width, "height": 900})
        v.stands_still()
        expect(v.page.locator("#slim-drift [data-kind=lora] [role=option]")).to_have_count(60)
        bars = drift_bars(v, "lora")
        assert len({bar["line"] for bar in bars}) > 1  # over several lines
        for bar in bars:
            assert abs(bar["left"]) <= 1 and abs(bar["right"]) <= 1 and 0 <= bar["above"] < 57
        # LoRA's are higher than SLIM's, on the same scale.
        assert min(bar["height"] for bar in bars) > max(bar["height"] for bar in drift_bars(v, "slim"))
        assert v.width()[0] <= width


def test_drift_in_domain_is_what_was_taught(v):
    v.ask("A trained prompt")
    expect(v.answer("lora").locator(".slim-summary")).to_contain_text(
        "moved as it was taught: finds the base’s answer 10⁶ times less likely"
    )
    v.tab("Drift")
    expect(v.page.locator(".slim-sentence").first).to_contain_text("moved towards what they were taught")
    expect(v.page.locator("#slim-drift [data-kind=lora] h2")).to_have_text("LoRA moved towards what it was taught")
    # SLIM hardly moved at all.
    expect(v.page.locator("#slim-drift [data-kind=slim] h2")).to_have_text("SLIM")
    assert bar_colours(v, "lora") == {"rgb(71, 85, 105)"}
    v.tab("Compare")
    v.button("Open").click()  # a gate that is forced open judges nothing
    v.done()
    v.tab("Drift")
    expect(v.page.locator(".slim-sentence").first).not_to_contain_text("taught")


@pytest.mark.parametrize(
    ("nats", "said"),
    [(14 * math.log(10), "10¹⁴ times less likely"), (-math.log(12_345), "12,000 times more likely"), (0.0, "exactly")],
)
def test_ratios_are_numbers_that_can_be_read(v, site, nats, said):
    site.engine.drift_of = {"lora": nats, "slim": 0.0}
    v.ask("Hello")
    v.tab("Drift")
    first = v.page.locator("#slim-drift [data-kind=lora] [role=option]").first
    expect(first).to_have_attribute("aria-label", re.compile(f": {re.escape(said)}"))
    assert not re.search(r"\de[+-]?\d|0{7}", v.page.locator("#slim-drift").inner_text())


def test_forgetting(v):
    v.tab("Forgetting")
    panel = v.page.locator("#slim-forgetting")
    expect(panel).to_contain_text("Not to be forgotten: base 85%, LoRA 25%, SLIM 78%.")
    panel.get_by_text("The numbers as a table").nth(1).click()
    row = panel.get_by_role("row").filter(has=v.page.get_by_role("rowheader", name="sums"))
    expect(row).to_contain_text("30% (25 to 35)")


def test_about(v):
    v.tab("About")
    expect(v.page.get_by_alt_text(re.compile("One Linear with SLIM"))).to_be_visible()
    expect(v.page.get_by_role("link", name="NAACL 2025")).to_have_attribute(
        "href", "https://aclanthology.org/2025.naacl-long.246"
    )
    expect(v.page.locator("#slim-facts")).to_contain_text("gradio")
    v.tab("Model")
    expect(v.page.locator("#slim-loaded")).to_contain_text("2.0 GB of 8.0 GB")
