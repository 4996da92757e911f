# SPDX-License-Identifier: Apache-2.0
"""Visits to the real demo model: everything that needs no known speed."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from slim_core.demo.stored import load_examples
from slim_core.demo.words import task_words
from slim_core.paths import DEMO
from tests.ui.test_files import save


QUESTION = "What is the capital of Peru?"
NAMES = ("base", "lora", "slim")


@pytest.fixture
def v(stay, demo):
    return stay(demo.url)


def test_a_question_is_answered_by_all(v, demo):
    expect(v.page.locator("#slim-header")).to_contain_text(re.compile(r"SLIM demo · \w+ · cpu"))
    expect(v.page.locator(".slim-head[data-column=base] .slim-size")).to_contain_text("SLIM demo: ")
    v.ask(QUESTION)
    expect(v.text("base")).to_contain_text("Lima")
    for name in NAMES:
        expect(v.state(name)).to_have_text(re.compile("^done"))
        expect(v.answer(name).locator(".slim-speed")).to_have_text(re.compile(r"^\d+ tokens? · .*\d s$"))
        expect(v.answer(name).locator(".slim-how")).to_contain_text("greedy · first token after")
    expect(v.answer("slim").locator(".slim-summary")).to_have_text(
        re.compile(r"^(?:over )?\d+% of the answer past LoRA · finds the base’s answer .* likely$")
    )
    assert len(demo.engine.variants) == 3


def test_a_conversation_with_retry_edit_and_undo(v):
    v.ask(QUESTION)
    first = v.text("slim").inner_text()
    v.ask("What is the opposite of hot?")
    v.page.get_by_role("button", name="Let SLIM answer again").click()
    v.done()
    v.button("Retry all").click()
    v.page.wait_for_timeout(300)  # until they are written, which may be over at once
    v.done()
    expect(v.page.locator(".slim-turn")).to_have_count(2)
    assert v.text("slim", 0).inner_text() == first
    v.button("Undo").click()
    expect(v.page.locator(".slim-turn")).to_have_count(1)
    expect(v.prompt).to_have_value("What is the opposite of hot?")
    v.page.get_by_role("button", name="Edit prompt 1").click()
    v.page.get_by_label("The prompt, edited").fill("What is the capital of Italy?")
    v.button("Answer again").click()
    expect(v.page.locator(".slim-bubble")).to_have_text("What is the capital of Italy?")
    v.done()
    expect(v.text("base")).to_contain_text("Rome")


def test_one_at_a_time_writes_the_same(visit, demo):
    v = visit(url=demo.url)
    v.ask(QUESTION)
    together = [v.text(name).inner_text() for name in NAMES]
    v.open_settings()
    v.page.get_by_label("One at a time").check()
    v.button("Retry all").click()
    v.page.wait_for_timeout(300)
    v.done()
    assert [v.text(name).inner_text() for name in NAMES] == together


def test_the_same_seed_gives_the_same_answers(visit, demo):
    v = visit(url=demo.url)
    v.open_settings()
    temperature = v.page.locator("#slim-temperature input[type=number]")
    temperature.fill("1.5")
    temperature.blur()
    v.page.get_by_label("Seed").fill("11")
    v.page.get_by_label("Seed").blur()
    v.ask("Tell me something.")
    first = [v.text(name).inner_text() for name in NAMES]
    expect(v.answer("base").locator(".slim-how")).to_contain_text("temperature 1.5, seed 11")
    v.button("New conversation").click()
    expect(v.page.locator(".slim-turn")).to_have_count(0)
    v.ask("Tell me something.")
    assert [v.text(name).inner_text() for name in NAMES] == first


def test_differences_and_colours(v):
    v.ask("What kind of animal is a whale? A. bird B. mammal C. fish D. insect")
    answers = {name: v.text(name).inner_text() for name in NAMES}
    v.page.get_by_label("Differences from base").check()
    special = v.answer("lora").locator(".slim-special .slim-text")
    expect(special).to_be_visible()
    if answers["lora"] != answers["base"]:
        expect(special.locator("ins, del").first).to_be_visible()
    else:
        expect(v.answer("lora")).to_contain_text("Word for word the base’s answer.")
    v.page.get_by_label("Coloured by routing").check()
    tokens = v.answer("slim").get_by_role("option")
    expect(tokens.first).to_have_attribute("aria-label", re.compile(r"identity \d+%"))
    expect(v.answer("lora").get_by_role("option").first).to_have_attribute("aria-label", re.compile("through LoRA"))


def test_routing_of_real_tokens(v, demo):
    v.ask(QUESTION)
    v.tab("Routing")
    tokens = v.page.locator("#slim-routing .slim-strip [role=option]")
    blocks = demo.engine.info.blocks
    expect(v.page.locator(".slim-bars .slim-bar")).to_have_count(blocks)
    v.button("both").click()
    expect(v.page.locator(".slim-routing")).to_contain_text(
        re.compile(r"Imbalance of the LoRA experts: \d|No LoRA expert was used \(both\)")
    )
    v.button("answer").click()
    expect(tokens.filter(has_text="Peru")).not_to_have_count(0)
    tokens.filter(has_text="Peru").first.click()
    expect(v.page.locator("#slim-detail h2")).to_contain_text("Peru")
    table = v.page.get_by_role("region", name="Experts of every Linear")
    row = table.locator("tbody tr").first.locator("td, th").all_inner_texts()
    # Layer, Linear, identity share, gate, distance, reference, cluster, and a weight for each expert; those add up to
    # one.
    weights = [0.0 if text == "·" else float(text) for text in row[7:]]
    assert sum(weights) == pytest.approx(1, abs=0.03)
    assert row[0] == "0" and row[2].endswith("%") and float(row[4].replace("−", "-")) >= -1 and int(row[6]) >= 0
    v.page.get_by_role("application", name="Heat map").focus()
    v.page.keyboard.press("ArrowRight")
    expect(v.status).to_contain_text("Layer 0, token")
    # Written as in the verdict: the reference of most contexts is below 0.
    expect(v.page.locator(".slim-readout")).to_contain_text(re.compile(r", distance −?\d\.\d\d, up to −\d\.\d\d is"))
    v.page.get_by_label("Routing of").select_option("lora")
    expect(v.page.locator(".slim-routing")).to_contain_text("every token goes through it")
    v.page.get_by_label("Routing of").select_option("slim")
    assert save(v, "Save as PNG").suggested_filename == "slim-routing.png"


def test_an_example_shows_at_one_click_what_it_says(v):
    # One of each kind; tests/demo/test_showcase.py asks them all.
    pairs, alone = load_examples(DEMO)
    for place, example in (("0-0", pairs[0][0]), ("1-1", pairs[1][1]), ("alone-0", alone[0])):
        v.page.locator(f"#slim-ex-{place}").click()
        expect(v.page.locator(".slim-bubble")).to_have_text([example.prompt])
        v.done()
        kind = "like" if place.endswith("-0") and not place.startswith("alone") else "unlike"
        expect(v.page.locator("#slim-transcript .slim-verdict")).to_have_attribute("data-verdict", kind)
        for name in NAMES:
            expect(v.text(name)).to_have_text(example.answers[name], use_inner_text=True)


def test_drift_knows_where_slim_is_the_base(v):
    pairs, _ = load_examples(DEMO)
    own = pairs[0][1]
    v.page.locator("#slim-ex-0-1").click()
    expect(v.page.locator(".slim-bubble")).to_have_text(own.prompt)
    v.done()
    v.tab("Drift")
    said = v.page.locator("#slim-drift [data-kind=slim] .slim-exact")
    expect(said).to_contain_text(re.compile("SLIM is .*the base.* at every token"))


def test_the_gate_keeps_what_was_known(v, demo):
    if demo.engine.variants[2].strength is None:
        pytest.skip("the demo's SLIM adapter has no gate")
    v.ask("What kind of animal is a whale? A. bird B. mammal C. fish D. insect")
    kept = v.text("slim").inner_text()
    assert kept == v.text("base").inner_text()
    v.button("Open").click()
    expect(v.answer("slim").locator(".slim-how")).to_contain_text("gate open")
    v.done()
    assert v.text("slim").inner_text() != kept


def test_drift_forgetting_and_about(v):
    v.ask(QUESTION)
    v.tab("Drift")
    expect(v.page.locator(".slim-sentence").first).to_have_text(
        re.compile(r"^LoRA finds the base’s answer .* likely; SLIM finds it .* likely\.$")
    )
    expect(v.page.get_by_role("listbox", name=re.compile("as LoRA reads it; the most at token"))).to_be_visible()
    v.tab("Forgetting")
    expect(v.page.locator(".slim-score-grid")).to_have_count(2)
    stored = json.loads((DEMO / "results.json").read_text())["tasks"]
    for summary in v.page.get_by_text("The numbers as a table").all():
        summary.click()
    for task, scores in stored.items():
        row = v.page.get_by_role("row").filter(has=v.page.get_by_role("rowheader", name=task_words(task)))
        for variant in NAMES:
            low, high = (int(100 * scores[variant][part] + 0.5) for part in ("low", "high"))
            expect(row).to_contain_text(f"({low} to {high})")
    v.tab("Model")
    expect(v.page.locator("#slim-models")).to_contain_text("SLIM demo")
    v.tab("About")
    expect(v.page.locator("#slim-facts")).to_contain_text("torch")
    config = json.loads((DEMO / "slim" / "adapter_config.json").read_text())
    facts = v.page.locator("#slim-facts section").filter(has_text="How SLIM measures")
    expect(facts).to_contain_text({"rms": "root of the mean square", "max": "the largest"}[config["distance"]])
    expect(facts).to_contain_text(f"strength {config['yield_strength']:g} ×")
    assert str(DEMO) not in v.page.content()


def test_a_conversation_leaves_and_comes_back(visit, demo, v, tmp_path):
    v.ask(QUESTION)
    v.ask("Who are you?")
    path = tmp_path / "conversation.json"
    save(v, "Export JSON").save_as(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["base"] == "SLIM demo" and [turn["prompt"] for turn in data["turns"]] == [QUESTION, "Who are you?"]
    other = visit(url=demo.url)
    other.upload(path)
    expect(other.page.locator(".slim-turn")).to_have_count(2)
    for name in NAMES:
        assert other.text(name).inner_text() == v.text(name).inner_text()
        assert other.answer(name).locator(".slim-summary").inner_text() == (
            v.answer(name).locator(".slim-summary").inner_text()
        )
    other.ask("What is the opposite of hot?")
    expect(other.page.locator(".slim-turn")).to_have_count(3)


def test_what_does_not_fit_is_told_in_numbers(v, demo):
    most = demo.engine.info.context_length
    v.send("Lima is big. " * most)
    expect(v.warning).to_contain_text(re.compile(rf"has [\d,]+ tokens; this model reads at most {most:,}"))
    v.ask(QUESTION)
    expect(v.text("base")).to_contain_text("Lima")
