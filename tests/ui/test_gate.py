# SPDX-License-Identifier: Apache-2.0
"""The gate: what it made of a prompt, the meter while one is typed, another strength and another quantile."""

import json
import re
from dataclasses import replace

import pytest
from playwright.sync_api import expect

from tests.ui.conftest import Site
from tests.ui.scripted import ScriptedEngine
from tests.ui.test_files import save
from tests.waiting import until


NAMES = ("base", "lora", "slim")


def verdict(v, turn=-1):
    return v.page.locator(".slim-turn").nth(turn).locator(".slim-verdict")


def meter(v):
    return v.page.locator(".slim-meter")


def slider(v, label="SLIM"):
    return v.page.get_by_role("slider", name=f"Strength of {label}’s gate")


def begin(v, label="SLIM"):
    return v.page.get_by_label(f"Where {label}’s gate begins to close")


# ---- the verdict


def test_a_verdict_above_the_answers(v):
    for prompt, kind, sentence in (
        ("A foreign prompt", "unlike", "gives the base’s own answer, token for token."),
        ("A trained prompt", "like", "Like the training data: SLIM answers with its LoRA experts."),
        ("Something", "mixed", "Partly like the training data: SLIM sent"),
    ):
        v.ask(prompt)
        expect(verdict(v)).to_have_attribute("data-verdict", kind)
        expect(verdict(v)).to_contain_text(sentence)
        expect(verdict(v)).to_contain_text(re.compile(r"\d+% past LoRA · distance \d\.\d\d; up to 1\.00"))
    assert v.text("slim", 0).inner_text() == v.text("base", 0).inner_text()
    expect(verdict(v, 0)).to_contain_text("by construction, not by luck")
    # Both at once: the page may still be scrolling.
    script = """turn => turn.querySelector('.slim-verdict').getBoundingClientRect().bottom
        <= turn.querySelector('.slim-answer').getBoundingClientRect().top"""
    assert v.page.locator(".slim-turn").first.evaluate(script)
    # A base that reads all says nothing of it.
    expect(v.page.locator(".slim-latest")).to_be_hidden()


def test_a_verdict_while_the_answer_is_written(v, site):
    site.engine.delay, site.engine.length = dict.fromkeys(NAMES, 0.1), 60
    v.send("A foreign prompt")
    expect(verdict(v)).to_contain_text("gives, so far, the base’s own answer")
    expect(v.state("slim")).to_have_text("writing")
    v.button("Stop all").click()
    v.done()


# ---- the meter


def test_the_meter_follows_what_is_typed(v, site):
    expect(meter(v)).to_be_hidden()
    v.prompt.press_sequentially("A foreign prompt", delay=40)
    expect(meter(v)).to_be_visible()
    expect(meter(v)).to_contain_text("Unlike the training data")
    expect(meter(v)).to_contain_text("100% past LoRA")
    expect(meter(v)).to_contain_text("distance 3.00; up to 1.00 is like the training data")
    # Not at every key.
    assert site.engine.peeks <= 3
    v.prompt.fill("A trained prompt")
    expect(meter(v)).to_contain_text("Like the training data")
    v.prompt.fill("")
    expect(meter(v)).to_be_hidden()
    v.prompt.fill("A trained prompt")
    expect(meter(v)).to_be_visible()
    before = site.engine.peeks
    v.prompt.fill("fail please")
    until(lambda: site.engine.peeks > before)
    v.stands_still()
    expect(meter(v)).to_be_hidden()
    expect(v.page.locator(".toast-body")).to_have_count(0)


def test_the_meter_reads_the_system_prompt_too(visit):
    v = visit()
    v.prompt.fill("Something")
    expect(meter(v)).to_contain_text("Partly like the training data")
    v.open_settings()
    v.set("System prompt", "Some foreign words")
    expect(meter(v)).to_contain_text("Unlike the training data")
    v.prompt.press("Enter")
    expect(verdict(v)).to_have_attribute("data-verdict", "unlike")
    v.done()


def test_the_meter_waits_for_answers(v, visit, site):
    site.engine.delay, site.engine.length = dict.fromkeys(NAMES, 0.05), 2000
    other = visit()
    v.send("A long story")
    expect(v.state("base")).to_have_text("writing")
    for each in (other, v):
        with each.page.expect_response("**/run/predict*"):  # the server is asked, and says that it is busy
            each.prompt.fill("A foreign prompt")
    other.stands_still()
    assert site.engine.peeks == 0
    expect(meter(v)).to_be_hidden()
    expect(meter(other)).to_be_hidden()
    v.button("Stop all").click()
    v.done()
    for each in (v, other):
        expect(meter(each)).to_be_visible()
        expect(meter(each)).to_contain_text("Unlike the training data")
        expect(each.page.locator(".toast-body")).to_have_count(0)


def test_an_answer_waits_for_one_reading_at_most(v, site):
    site.engine.reading = 0.4
    v.prompt.fill("Something")
    until(lambda: site.engine.peeks == 1)
    v.prompt.press("Enter")
    expect(v.state("base")).to_have_text("done")
    v.done()
    expect(meter(v)).to_be_hidden()


# ---- another strength


def test_an_open_gate_shows_what_it_kept(v):
    v.ask("A foreign prompt")
    kept = v.text("slim").inner_text()
    expect(v.button("As trained")).to_have_attribute("aria-pressed", "true")
    v.button("Open").click()
    expect(verdict(v)).to_have_attribute("data-verdict", "open")
    expect(verdict(v)).to_contain_text("though this is unlike its training data")
    expect(v.text("slim")).to_contain_text("SLIM says")
    expect(v.answer("slim").locator(".slim-how")).to_contain_text("gate open")
    expect(v.button("Open")).to_have_attribute("aria-pressed", "true")
    v.done()
    expect(v.text("base")).to_contain_text("Base says")
    v.tab("Drift")
    expect(v.page.locator("#slim-drift")).to_contain_text("Measured with a changed gate: SLIM open.")
    v.tab("Compare")
    v.button("As trained").click()
    expect(v.text("slim")).to_have_text(kept)
    expect(verdict(v)).to_have_attribute("data-verdict", "unlike")
    v.button("Stronger").click()
    expect(v.answer("slim").locator(".slim-how")).to_contain_text("gate at strength 8")
    expect(slider(v)).to_have_value("8")


def test_the_slider_with_the_keyboard(v, site):
    v.ask("Something")
    runs = site.engine.runs
    slider(v).focus()
    for _ in range(4):
        v.page.keyboard.press("ArrowRight")
    expect(v.answer("slim").locator(".slim-how")).to_contain_text("gate at strength 6")
    expect(slider(v)).to_have_attribute("aria-valuetext", "strength 6")
    expect(slider(v)).to_be_focused()
    # Not for each key.
    assert site.engine.runs == runs + 1
    for _ in range(4):
        v.page.keyboard.press("ArrowLeft")
    expect(slider(v)).to_have_attribute("aria-valuetext", "strength 4, as trained")
    expect(v.answer("slim").locator(".slim-how")).not_to_contain_text("gate")


def test_a_gate_that_is_changed_while_answers_are_written_waits_for_them(v, site):
    site.engine.delay, site.engine.length = dict.fromkeys(NAMES, 0.05), 40
    v.send("Something")
    expect(v.state("slim")).to_have_text("writing")
    v.button("Open").click()
    expect(v.answer("slim").locator(".slim-how")).to_contain_text("gate open")
    v.done()
    expect(v.page.locator(".toast-body")).to_have_count(0)
    assert v.tokens("base") == 40


def test_a_gate_is_for_its_visitor_alone(v, visit):
    other = visit()
    v.button("Open").click()
    v.ask("A foreign prompt")
    other.ask("A foreign prompt")
    expect(verdict(v)).to_have_attribute("data-verdict", "open")
    expect(verdict(other)).to_have_attribute("data-verdict", "unlike")
    expect(other.button("As trained")).to_have_attribute("aria-pressed", "true")


def test_a_gate_before_the_first_prompt_and_in_the_meter(v):
    v.prompt.fill("A foreign prompt")
    expect(meter(v)).to_be_visible()
    expect(meter(v)).to_contain_text("Unlike the training data")
    v.button("Open").click()
    expect(meter(v)).to_contain_text("Gate forced open")
    v.prompt.press("Enter")
    expect(verdict(v)).to_have_attribute("data-verdict", "open")
    v.done()


# ---- where it begins to close


def test_where_the_gate_begins_to_close(v, visit):
    other = visit()
    expect(begin(v).locator("option")).to_have_text(
        [f"beyond {share}% of the training data{', as trained' if share == 99 else ''}" for share in (50, 90, 99)]
    )
    expect(begin(v)).to_have_value("0.99")
    v.ask("A foreign prompt")
    expect(verdict(v)).to_contain_text("up to 1.00 is like the training data")
    begin(v).select_option("0.9")
    expect(verdict(v)).to_contain_text("up to 0.90 is like the training data")
    how = v.answer("slim").locator(".slim-how")
    expect(how).to_contain_text("gate closing beyond 90% of the training data")
    v.done()
    # Neither button says what it is now, and the strength is what it was.
    expect(v.button("As trained")).to_have_attribute("aria-pressed", "false")
    expect(slider(v)).to_have_attribute("aria-valuetext", "strength 4, as trained")
    v.prompt.fill("A foreign prompt")
    expect(meter(v)).to_contain_text("distance 3.00; up to 0.90 is like the training data")
    v.tab("Drift")
    expect(v.page.locator("#slim-drift")).to_contain_text("SLIM closing beyond 90% of the training data.")
    v.tab("Forgetting")
    expect(v.page.get_by_text("a quantile at which nothing was measured")).to_be_visible()
    v.tab("Compare")
    # For this visitor alone.
    expect(begin(other)).to_have_value("0.99")
    other.ask("A foreign prompt")
    expect(verdict(other)).to_contain_text("up to 1.00 is like the training data")
    v.button("Stronger").click()
    expect(how).to_contain_text("gate at strength 8, closing beyond 90% of the training data")
    v.button("As trained").click()
    expect(how).not_to_contain_text("gate")
    expect(begin(v)).to_have_value("0.99")
    expect(v.button("As trained")).to_have_attribute("aria-pressed", "true")


def test_links_and_files_carry_the_quantile(v, visit, tmp_path):
    begin(v).select_option("0.5")
    v.ask("A foreign prompt")
    expect(verdict(v)).to_contain_text("up to 0.50 is like the training data")
    v.button("Copy link").click()
    expect(v.status).to_contain_text("is copied")
    link = v.page.evaluate("navigator.clipboard.readText()")
    assert "quantile=0.5" in link and "strength" not in link
    other = visit(query={"quantile": 0.3})
    expect(begin(other)).to_have_value("0.99")
    # Between two that the adapter stores: it has an option of its own. The other number makes no sense.
    other.go(quantile=0.75, strength=-1)
    expect(begin(other)).to_have_value("0.75")
    expect(begin(other).locator("option")).to_have_count(4)
    other.page.goto(link)
    other.ready()
    expect(begin(other)).to_have_value("0.5")
    path = tmp_path / "conversation.json"
    save(v, "Export JSON").save_as(path)
    answers = json.loads(path.read_text(encoding="utf-8"))["turns"][0]["answers"]
    assert [answers[name]["quantile"] for name in ("slim", "base")] == [0.5, None]
    other.upload(path)
    expect(other.answer("slim").locator(".slim-how")).to_contain_text("closing beyond 50% of the training data")


def test_an_adapter_with_one_distance_says_so(visit):
    engine = ScriptedEngine()
    engine.variants = tuple(replace(variant, measure=None) for variant in engine.variants)
    site = Site(engine)
    try:
        v = visit(url=site.url)
        expect(v.page.get_by_text("where it was trained to: this adapter stores no other distance")).to_be_visible()
        expect(begin(v)).to_be_hidden()
        v.button("Open").click()
        expect(v.button("Open")).to_have_attribute("aria-pressed", "true")
    finally:
        site.close()


def test_the_meter_has_its_distance_on_a_phone(visit):
    v = visit(width=390)
    v.prompt.fill("A foreign prompt")
    expect(meter(v).get_by_text("distance 3.00; up to 1.00 is like the training data")).to_be_visible()
    box = meter(v).bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert box["height"] < 45, "two lines"


def test_links_and_files_carry_the_strength(v, visit, tmp_path):
    v.ask("A foreign prompt")
    v.button("Open").click()
    expect(verdict(v)).to_have_attribute("data-verdict", "open")
    v.done()
    v.button("Copy link").click()
    expect(v.status).to_contain_text("is copied")
    link = v.page.evaluate("navigator.clipboard.readText()")
    assert "strength=0" in link
    other = visit()
    other.page.goto(link)
    other.ready()
    expect(other.button("Open")).to_have_attribute("aria-pressed", "true")
    path = tmp_path / "conversation.json"
    save(v, "Export JSON").save_as(path)
    answers = json.loads(path.read_text(encoding="utf-8"))["turns"][0]["answers"]
    assert answers["slim"]["strength"] == 0 and answers["base"]["strength"] is None
    other.button("As trained").click()
    other.upload(path)
    expect(verdict(other)).to_have_attribute("data-verdict", "open")
    expect(other.button("As trained")).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize("strength", ["-1", "NaN"])
def test_a_link_with_a_strength_that_makes_no_sense(visit, strength):
    v = visit(query={"strength": strength, "prompt": "Hi"})
    expect(v.prompt).to_have_value("Hi")
    expect(v.button("As trained")).to_have_attribute("aria-pressed", "true")


def test_an_adapter_without_a_gate_and_a_base_that_reads_the_latest_prompt_alone(visit):
    engine = ScriptedEngine(latest_only=True)
    engine.variants = tuple(replace(variant, strength=None) for variant in engine.variants)
    site = Site(engine)
    try:
        v = visit(url=site.url)
        v.prompt.fill("A foreign prompt")
        v.page.wait_for_timeout(700)  # longer than typing has to rest before the meter asks
        expect(meter(v)).to_be_hidden()
        v.prompt.fill("")
        note = v.page.get_by_text("This base reads only the latest prompt")
        expect(note).to_be_hidden()
        v.ask("A foreign prompt")
        expect(note).to_be_visible()
        expect(v.page.locator(".slim-verdict:visible")).to_have_count(0)
        expect(slider(v)).to_be_hidden()
        v.tab("Routing")
        expect(v.page.locator(".slim-heat canvas")).to_be_visible()
        expect(v.page.get_by_text("Above the map")).to_be_hidden()
    finally:
        site.close()


# ---- routing, drift, forgetting


def test_the_distance_under_the_map(v):
    v.ask("A foreign prompt")
    v.tab("Routing")
    expect(v.page.locator("#slim-routing .slim-verdict")).to_have_attribute("data-verdict", "unlike")
    axis = v.page.locator(".slim-axis")
    expect(axis).to_contain_text("gate")
    # Four layers, the gate, and the distances −1, 0 and 1.
    expect(axis.locator("span")).to_have_count(8)
    v.page.get_by_role("application", name="Heat map").focus()
    v.page.keyboard.press("ArrowRight")
    expect(v.page.locator(".slim-readout")).to_contain_text(
        "gate 0.00, distance 3.00, up to 1.00 is like the training data"
    )
    assert save(v, "Save as PNG").suggested_filename == "slim-routing.png"
    v.page.get_by_label("Routing of").select_option("lora")
    expect(v.page.locator("#slim-routing .slim-verdict")).to_be_hidden()
    expect(axis).to_be_hidden()
    v.page.get_by_label("Routing of").select_option("slim")


def test_in_domain_and_outside(v):
    for prompt in ("A foreign prompt", "A trained prompt"):
        v.ask(prompt)
    v.tab("Drift")
    table = v.page.get_by_role("region", name="Mean KL in domain and outside")
    rows = table.locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text("Like the training data")
    expect(rows.nth(1)).to_contain_text("Unlike the training data")


def test_the_plane_of_learning_and_forgetting(v):
    v.tab("Forgetting")
    plane = v.page.get_by_role("img", name=re.compile("^Learning against forgetting"))
    expect(plane).to_have_attribute("aria-label", re.compile("Your gate, now: strength 4"))
    expect(plane.locator(".slim-plane-base")).to_have_count(2)
    ring = plane.locator(".slim-plane-here")
    before = float(ring.get_attribute("cx"))
    plane.locator(".slim-plane-point").last.hover()
    tip = v.page.locator(".slim-tip")
    expect(tip).to_contain_text("SLIM, strength 4: 88.0% of what was trained, 80.0% of the rest")
    v.page.get_by_text("The points as a table").click()
    row = v.page.get_by_role("region", name="Points of the plane").locator("tbody tr").filter(has_text="gate open")
    expect(row).to_contain_text("40.0% (35.0% to 45.0%)")
    v.tab("Compare")
    v.button("Open").click()
    expect(v.button("Open")).to_have_attribute("aria-pressed", "true")
    v.tab("Forgetting")
    expect(plane).to_have_attribute("aria-label", re.compile("Your gate, now: strength 0"))
    assert float(ring.get_attribute("cx")) < before
    v.tab("Compare")
    v.button("As trained").click()
    v.tab("Forgetting")
    expect(plane).to_have_attribute("aria-label", re.compile("Your gate, now: strength 4"))
