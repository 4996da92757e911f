# SPDX-License-Identifier: Apache-2.0
"""Three answers to one prompt, and stopping them."""

import re

import pytest
from playwright.sync_api import expect

from tests.ui.visit import SECONDS
from tests.waiting import until


def test_three_answers_stream_together(v, site):
    site.engine.delay = dict.fromkeys(("base", "lora", "slim"), 0.05)
    site.engine.length = 60
    v.send("Hello there")
    for name in ("base", "lora", "slim"):
        expect(v.state(name)).to_have_text("writing")
    for _ in range(3):
        before = {name: v.tokens(name) for name in ("base", "lora", "slim")}
        until(lambda before=before: all(v.tokens(name) > count for name, count in before.items()))
    expect(v.answer("slim")).to_have_attribute("aria-busy", "true")
    v.done()
    for name, label in (("base", "Base"), ("lora", "LoRA"), ("slim", "SLIM")):
        expect(v.text(name)).to_contain_text(f"{label} says: turn1 seed0 Hello there")
        assert v.tokens(name) == 60
        expect(v.answer(name)).to_have_attribute("aria-busy", "false")
        expect(v.answer(name).locator(".slim-speed")).to_contain_text("tokens/s")


def test_reading_the_prompt_has_a_name(v, site):
    site.engine.reading = 2.5 * SECONDS / 1000
    v.send("Hello")
    for name in ("base", "lora", "slim"):
        expect(v.state(name)).to_have_text("reading the prompt")
    v.done()
    expect(v.answer("slim").locator(".slim-how")).to_have_text(re.compile(r"greedy · first token after [\d.]+ s"))


def test_a_slow_column_does_not_hold_the_others(v, site):
    site.engine.delay = {"slim": 0.3}
    v.send("Hello")
    expect(v.state("base")).to_have_text("done")
    expect(v.state("lora")).to_have_text("done")
    expect(v.state("slim")).to_have_text("writing")
    v.answer("slim").get_by_role("button", name="Stop SLIM").click()
    v.done()


def test_headers_name_kind_and_size(v):
    heads = v.page.locator(".slim-head")
    expect(heads).to_have_count(3)
    expect(v.page.get_by_role("heading", level=1)).to_have_text("SLIM Compare")
    for i, (name, kind, size) in enumerate(
        (("Base", "base model", "4.0 MB"), ("LoRA", "LoRA adapter", "rank 32"), ("SLIM", "SLIM adapter", "top\u20112"))
    ):
        expect(heads.nth(i).get_by_role("heading", level=2)).to_have_text(name)
        expect(heads.nth(i).locator(".slim-chip")).to_have_text(kind)
        expect(heads.nth(i).locator(".slim-size")).to_contain_text(size)


def test_stop_one_lets_the_others_go_on(v, site):
    site.engine.delay = dict.fromkeys(("base", "lora", "slim"), 0.06)
    site.engine.length = 40
    v.send("Hello")
    expect(v.state("lora")).to_have_text("writing")
    v.answer("lora").get_by_role("button", name="Stop LoRA").click()
    expect(v.state("lora")).to_have_text("stopped")
    expect(v.state("base")).to_have_text("writing")
    v.done()
    assert v.tokens("lora") < 40
    assert v.tokens("base") == v.tokens("slim") == 40


def test_stop_all_then_send_again(v, site):
    site.engine.delay = dict.fromkeys(("base", "lora", "slim"), 0.1)
    site.engine.length = 200
    v.send("A long story")
    expect(v.state("base")).to_have_text("writing")
    v.button("Stop all").click()
    v.done()
    for name in ("base", "lora", "slim"):
        expect(v.state(name)).to_have_text("stopped")
    site.engine.length, site.engine.delay = 12, {}
    v.ask("Something else")
    expect(v.text("base")).to_contain_text("turn2")
    expect(v.state("slim")).to_have_text("done")


def test_a_second_prompt_while_streaming_is_refused_with_a_sentence(v, site):
    site.engine.delay = dict.fromkeys(("base", "lora", "slim"), 0.1)
    site.engine.length = 60
    v.send("First")
    expect(v.state("base")).to_have_text("writing")
    v.send("Second")
    expect(v.warning).to_contain_text("Answers are still being written")
    expect(v.page.locator(".slim-turn")).to_have_count(1)
    expect(v.prompt).to_have_value("Second")
    v.button("Stop all").click()
    v.done()


def test_one_at_a_time(visit, site):
    site.engine.delay = dict.fromkeys(("base", "lora", "slim"), 0.05)
    site.engine.length = 20
    v = visit()
    v.open_settings()
    v.page.get_by_label("One at a time").check()
    v.send("Hello")
    expect(v.state("base")).to_have_text("writing")
    expect(v.state("slim")).to_have_text("waiting")
    v.done()
    assert v.tokens("slim") == 20


def test_summary_under_each_answer(v):
    v.ask("Hello")
    expect(v.answer("lora").locator(".slim-summary")).to_contain_text("10⁶ times less likely")
    expect(v.answer("slim").locator(".slim-summary")).to_contain_text("1.11 times less likely")


def test_differences_from_the_base(v):
    v.ask("Hello")
    v.page.get_by_label("Differences from base").check()
    added = v.answer("lora").locator("ins")
    expect(added.first).to_have_text("LoRA")
    expect(v.answer("lora").locator("del").first).to_have_text("Base")
    expect(v.answer("base").locator("ins")).to_have_count(0)
    v.page.get_by_label("Answers", exact=True).check()
    expect(added).to_have_count(0)
    expect(v.text("lora")).to_be_visible()


def test_answers_coloured_by_routing(v):
    v.ask("Hello")
    v.page.get_by_label("Coloured by routing").check()
    token = v.answer("slim").get_by_role("option").first
    expect(token).to_have_attribute("aria-label", re.compile(r"SLIM: identity \d+%"))
    expect(v.answer("lora").get_by_role("option").first).to_have_attribute("aria-label", "LoRA: through LoRA")
    expect(v.answer("base").get_by_role("option")).to_have_count(0)


@pytest.mark.parametrize("length", [1, 2, 12])
def test_a_coloured_answer_is_whole(v, site, length):
    site.engine.length = length
    v.ask("Hello")
    v.page.get_by_label("Coloured by routing").check()
    for name in ("lora", "slim"):
        tokens = v.answer(name).get_by_role("option")
        text = v.text(name).text_content()
        assert len(text.split(" ")) == length
        expect(v.answer(name).get_by_role("listbox")).to_be_visible()
        assert "".join(tokens.all_text_contents()) == text
        expect(tokens.last).to_have_css("background-color", "rgba(0, 0, 0, 0)")
        expect(tokens.last).to_have_attribute("aria-label", f"{text.split(' ')[-1]}: no routing")
        if length > 1:
            expect(tokens.first).not_to_have_css("background-color", "rgba(0, 0, 0, 0)")


def test_a_coloured_answer_is_whole_while_it_is_written(v, site):
    site.engine.delay, site.engine.length = dict.fromkeys(("base", "lora", "slim"), 0.03), 2000
    v.send("Hello")
    v.page.get_by_label("Coloured by routing").check()
    expect(v.answer("slim").get_by_role("option").nth(3)).to_be_visible()
    # Whenever anything changes.
    looks, faults = v.answer("slim").evaluate(
        """node => new Promise((tell) => {
            const faults = [];
            let looks = 0;
            const look = () => {
                looks++;
                const [shown, text] = ["strip", "text"].map((name) => node.querySelector(`.slim-${name}`).textContent);
                if (shown !== text) faults.push([shown, text]);
                if (looks === 30) { observer.disconnect(); tell([looks, faults]); }
            };
            const observer = new MutationObserver(look);
            observer.observe(node, { subtree: true, childList: true, attributes: true, characterData: true });
            look();
        })"""
    )
    assert looks == 30 and faults == []
    v.button("Stop all").click()
    v.done()


PIECES = [
    ([" Yes", ",", " no"], "Yes, no.", ["Yes", ",", " no"], "."),
    ([" Yes", " no", " more"], "Yes n", ["Yes", " n", ""], ""),
    (["Yes", "<|mark|>", " no"], "Yes no", ["Yes", "", " no"], ""),
    (["a", "\ufffd", "\ufffd", " b"], "aé b", ["a", "", "é", " b"], ""),
    (["a", " \ufffd", "\ufffd", "\ufffd", "b"], "a 😀b!", ["a", "", "", " 😀", "b"], "!"),
    (["a", "\ufffd", "\ufffd"], "a😀b", ["a", "", "😀"], "b"),
    (["a", "\ufffd"], "a", ["a", ""], ""),
    (["one", " two"], "", ["", ""], ""),
    ([], "Yes", [], "Yes"),
]


def test_what_of_an_answer_belongs_to_each_token(v):
    for tokens, text, pieces, rest in PIECES:
        split = v.page.evaluate("([tokens, text]) => slim.pieces(tokens, text)", [tokens, text])
        assert split == [pieces, rest], text


def test_columns_hide_and_expand_and_stay_so(visit):
    v = visit()
    v.ask("Hello")
    v.page.get_by_role("button", name="Hide LoRA").click()
    expect(v.answer("lora")).to_be_hidden()
    expect(v.answer("slim")).to_be_visible()
    v.page.reload()
    v.ready()
    expect(v.page.locator(".slim-head[data-column=lora]")).to_be_hidden()
    v.page.get_by_role("button", name="Show LoRA").click()
    v.page.get_by_role("button", name="Show only SLIM").click()
    expect(v.page.locator(".slim-head:visible")).to_have_count(1)
    v.page.get_by_role("button", name="Show all columns").click()
    expect(v.page.locator(".slim-head:visible")).to_have_count(3)
    # A column that is shown again ends showing only one.
    v.page.get_by_role("button", name="Hide LoRA").click()
    v.page.get_by_role("button", name="Show only SLIM").click()
    expect(v.page.locator(".slim-head:visible")).to_have_count(1)
    v.page.get_by_role("button", name="Show LoRA").click()
    expect(v.page.locator(".slim-head:visible")).to_have_count(3)
    expect(v.page.get_by_role("button", name="Hide LoRA")).to_be_focused()


def test_a_click_and_the_focus_outlive_what_streams_in(visit, site):
    site.engine.delay, site.engine.length = dict.fromkeys(("base", "lora", "slim"), 0.05), 400
    v = visit()
    v.send("Hello")
    expect(v.state("base")).to_have_text("writing")
    v.page.evaluate(
        """() => { window.stored = 0; const set = Storage.prototype.setItem;
        Storage.prototype.setItem = function (key, value) {
            if (key === "slim-columns") window.stored += 1;
            set.call(this, key, value);
        }; }"""
    )
    v.page.get_by_role("button", name="Hide LoRA").click()
    show = v.page.get_by_role("button", name="Show LoRA")
    expect(show).to_be_focused()
    show.hover()
    # Pressed, held while the answers grow, let go.
    before = v.tokens("base")
    v.page.mouse.down()
    until(lambda: v.tokens("base") > before)
    expect(show).to_be_focused()
    v.page.mouse.up()
    expect(v.answer("lora")).to_be_visible()
    expect(v.page.get_by_role("button", name="Hide LoRA")).to_be_focused()
    expect(v.state("base")).to_have_text("writing")
    # Once for each thing that was done.
    assert v.page.evaluate("window.stored") == 2
    v.button("Stop all").click()
    v.done()


def test_copy_with_a_clipboard_and_without(visit):
    v = visit()
    v.ask("Hello")
    v.page.get_by_role("button", name="Copy SLIM’s answer").click()
    expect(v.status).to_have_text("SLIM’s answer is copied.")
    assert v.page.evaluate("navigator.clipboard.readText()") == v.text("slim").inner_text()
    # As on a page that came over plain HTTP.
    v.page.evaluate("navigator.clipboard.writeText('something else')")
    v.page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    copy = v.page.get_by_role("button", name="Copy SLIM’s answer")
    copy.focus()
    v.page.keyboard.press("Enter")
    expect(v.status).to_have_text("SLIM’s answer is copied.")
    expect(copy).to_be_focused()
    v.prompt.focus()
    v.page.keyboard.press("Control+V")
    expect(v.prompt).to_have_value(v.text("slim").inner_text())


def test_a_failure_is_a_sentence_in_the_column(v):
    v.ask("fail please")
    for name in ("base", "lora", "slim"):
        expect(v.answer(name).locator(".slim-error")).to_have_text("The memory is used up: shorten the conversation.")
    v.ask("and now a good one")
    expect(v.text("base")).to_contain_text("turn1")


def test_html_in_prompts_and_answers_stays_text(v):
    attack = "<img src=x onerror=window.hacked=1>"
    v.ask(attack)
    expect(v.page.locator(".slim-bubble")).to_have_text(attack)
    expect(v.text("base")).to_contain_text("onerror")
    for label in ("Differences from base", "Coloured by routing"):
        v.page.get_by_label(label).check()
        v.stands_still()
        assert v.page.locator("img[src=x]").count() == 0
    for tab in ("Routing", "Drift"):
        v.tab(tab)
        v.stands_still()
        assert v.page.locator("img[src=x]").count() == 0
    assert v.page.evaluate("window.hacked") is None
