# SPDX-License-Identifier: Apache-2.0
"""The blind vote: nothing on the page says who answered before the vote; then names and a tally stand there."""

import json
import re

import pytest
from playwright.sync_api import expect

from tests.ui.scripted import ScriptedEngine
from tests.ui.test_access import open_tab, serious
from tests.ui.test_files import save
from tests.ui.test_kept import Restartable, bar, records, reload, restart
from tests.ui.test_visitors import forget


# A name of ours, but not of a class or a property of all that is ours ("slim-answer", "--slim-line").
NAMES = re.compile(r"\b(?:base|lora|slim)\b(?!-)", re.IGNORECASE)


@pytest.fixture
def same_words(site, monkeypatch):
    """Everybody says the same, so that a name on the page is no part of an answer."""
    monkeypatch.setattr(ScriptedEngine, "words", lambda self, row, sampling: ["The", *[" same"] * 39])


@pytest.fixture
def mortal():
    """An app that can be started again at the same address."""
    site = Restartable()
    yield site
    site.close()


def heads(v):
    return v.page.locator(".slim-head h2")


def hide(v):
    v.open_settings()
    expect(v.page.get_by_label("Hide who answers")).not_to_be_checked()
    v.page.get_by_label("Hide who answers").check()
    expect(heads(v)).to_have_text(["A", "B", "C"])


def ballot(v, turn=-1):
    return v.page.locator(".slim-turn").nth(turn).get_by_role("group", name="Vote for the best answer")


def said(v, turn=-1):
    return v.page.locator(".slim-turn").nth(turn).locator(".slim-vote-said")


def markup(v):
    """Of all that changes with the answers, and the line that is read aloud."""
    parts = v.page.locator("#slim-transcript, #slim-status, #slim-meter")
    return "".join(part.evaluate("(node) => node.outerHTML") for part in parts.all())


@pytest.mark.parametrize(
    "view", [pytest.param("Answers", marks=pytest.mark.nightly), "Differences from base", "Coloured by routing"]
)
def test_nothing_gives_it_away_before_the_vote(visit, site, same_words, view):
    v = visit()
    v.ask("Before")
    # It is off by default.
    expect(heads(v)).to_have_text(["Base", "LoRA", "SLIM"])
    expect(ballot(v)).to_be_hidden()
    v.page.get_by_role("radio", name=view).check()
    v.button("New conversation").click()
    hide(v)
    site.engine.delay = dict.fromkeys(("base", "lora", "slim"), 1.0)
    v.send("Hello")
    expect(v.state("A")).to_have_text("writing")
    assert NAMES.findall(markup(v)) == []
    expect(ballot(v).get_by_role("button", name="A", exact=True)).to_be_disabled()
    site.engine.delay = {}
    v.done()
    expect(v.status).to_have_text("A: done, 40 tokens. B: done, 40 tokens. C: done, 40 tokens.")
    assert NAMES.findall(markup(v)) == []
    gone = v.page.locator("#slim-transcript").locator(".slim-gate, .slim-verdict, .slim-chip")
    expect(gone).to_have_count(0)
    colours = v.page.evaluate(
        "[...document.querySelectorAll('.slim-name, .slim-head')].map((n) => getComputedStyle(n).color "
        "+ getComputedStyle(n).borderTopColor)"
    )
    assert len(set(colours)) == 2 and len(colours) == 6
    for tab, part in (("Routing", "#slim-routing .slim-empty"), ("Drift", "#slim-drift .slim-empty")):
        open_tab(v, tab)
        expect(v.page.locator(part)).to_contain_text("Who answered is hidden until you have voted")
    open_tab(v, "Compare")
    v.button("Export JSON").click()
    expect(v.warning).to_contain_text("Vote on all answers first")


def test_a_vote_tells_names_and_counts(visit, site, tmp_path):
    v = visit()
    hide(v)
    v.ask("Hello")
    texts = {letter: v.text(letter).inner_text() for letter in "ABC"}
    ballot(v).get_by_role("button", name="B", exact=True).click()
    best = texts["B"].split()[0]
    order = ", ".join(f"{letter} is {texts[letter].split()[0]}" for letter in "ABC")
    expect(said(v)).to_have_text(f"You voted for {best}: {order}.")
    for letter in "ABC":
        expect(v.answer(letter).locator(".slim-name")).to_have_text(f"{letter}: {texts[letter].split()[0]}")
        assert v.text(letter).inner_text() == texts[letter]
    expect(v.page.locator("#slim-transcript .slim-verdict")).to_have_count(1)
    expect(ballot(v)).to_be_hidden()
    counts = {"Base": 0, "LoRA": 0, "SLIM": 0} | {best: 1}
    tally = v.page.locator(".slim-tally")
    expect(tally).to_have_text(
        "Your votes: " + ", ".join(f"{name} {count}" for name, count in counts.items()) + ", no difference 0."
    )
    v.button("New conversation").click()
    expect(v.page.locator(".slim-turn")).to_have_count(0)
    v.ask("And again")
    ballot(v).get_by_role("button", name="No difference").click()
    expect(said(v)).to_contain_text("You found no difference: A is")
    expect(tally).to_contain_text("no difference 1.")
    path = tmp_path / "c.json"
    save(v, "Export JSON").save_as(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["votes"] == {best: 1, "tie": 1}
    assert data["turns"][0]["vote"]["best"] == "tie" and len(data["turns"][0]["vote"]["order"]) == 3
    other = visit()
    other.upload(path)
    expect(said(other)).to_contain_text("You found no difference: A is")


@pytest.mark.nightly
def test_stop_and_retry_mean_the_letter(visit, site):
    site.engine.delay, site.engine.length = dict.fromkeys(("base", "lora", "slim"), 0.1), 60
    v = visit()
    hide(v)
    v.send("Hello")
    expect(v.state("B")).to_have_text("writing")
    v.page.get_by_role("button", name="Stop B").click()
    expect(v.state("B")).to_have_text("stopped")
    expect(v.state("A")).to_have_text("writing")
    v.button("Stop all").click()
    v.done()
    who = v.text("C").inner_text().split()[0]
    site.engine.delay, site.engine.length = {}, 12
    v.page.get_by_role("button", name="Let C answer again").click()
    expect(v.state("C")).to_have_text("done")
    v.done()
    assert v.text("C").inner_text().split()[0] == who
    expect(ballot(v)).to_be_visible()


@pytest.mark.nightly
def test_a_reload_hides_as_before(visit, same_words):
    v = visit()
    hide(v)
    v.ask("Hello")
    reload(v)
    expect(heads(v)).to_have_text(["A", "B", "C"])
    expect(ballot(v).get_by_role("button", name="A", exact=True)).to_be_enabled()
    assert NAMES.findall(markup(v)) == []
    v.open_settings()
    expect(v.page.get_by_label("Hide who answers")).to_be_checked()
    ballot(v).get_by_role("button", name="A", exact=True).click()
    expect(said(v)).to_contain_text("You voted for")


@pytest.mark.parametrize("way", ["example", "retry"])
def test_an_app_that_has_forgotten_hides_as_before(visit, site, same_words, way):
    v = visit()
    hide(v)
    if way == "retry":
        v.ask("Hello")
    forget(site)
    if way == "example":
        v.page.locator(".slim-example").first.click()
        v.done()
        expect(ballot(v)).to_be_visible()
    else:
        v.button("Retry all").click()
    expect(v.warning).to_contain_text("has forgotten this conversation")
    expect(heads(v)).to_have_text(["A", "B", "C"])
    expect(v.page.get_by_label("Hide who answers")).to_be_checked()
    assert NAMES.findall(markup(v)) == []


def test_the_browser_keeps_no_answer_before_the_vote(visit, mortal):
    v = visit(url=mortal.url)
    hide(v)
    for prompt in ("One", "Two"):
        v.ask(prompt)
    ballot(v, 0).get_by_role("button", name="C", exact=True).click()
    expect(said(v, 0)).to_contain_text("You voted for")
    v.page.wait_for_function("() => Object.values(localStorage).some((text) => text.includes('best'))")
    first, second = json.loads(records(v)[-1]["text"])["turns"]
    assert len(first["answers"]) == 3 and (second["prompt"], second["answers"], second["vote"]) == ("Two", {}, None)
    was = said(v, 0).inner_text()
    restart(v, mortal)
    bar(v).get_by_role("button", name="Restore").click()
    # What has been voted on is there; the other is asked again, and still hidden.
    expect(said(v, 0)).to_have_text(was)
    v.done()
    expect(heads(v)).to_have_text(["A", "B", "C"])
    for letter in "ABC":
        expect(v.answer(letter).locator(".slim-name")).to_have_text(letter)
    expect(v.page.locator(".slim-turn").nth(1).locator(".slim-verdict")).to_have_count(0)
    ballot(v).get_by_role("button", name="No difference").click()
    expect(said(v)).to_contain_text("You found no difference: A is")
    v.page.wait_for_function("() => Object.values(localStorage).some((text) => text.includes('tie'))")
    assert len(json.loads(records(v)[-1]["text"])["turns"][1]["answers"]) == 3


@pytest.mark.nightly
def test_who_shows_the_names_sees_them_at_once(visit):
    v = visit()
    v.ask("Before")
    hide(v)
    expect(v.answer("B").locator(".slim-name")).to_have_text("B: LoRA")
    v.ask("Hello")
    v.page.get_by_label("Hide who answers").uncheck()
    expect(v.page.locator(".slim-head h2")).to_have_text(["Base", "LoRA", "SLIM"])
    expect(v.text("slim")).to_contain_text("SLIM says")
    expect(ballot(v)).to_be_hidden()
    expect(v.page.locator(".slim-tally")).to_be_hidden()


@pytest.mark.nightly
@pytest.mark.parametrize(("theme", "width"), [("light", 390), ("dark", 1280)])
def test_everybody_can_vote(visit, theme, width):
    v = visit(theme=theme, width=width)
    hide(v)
    v.ask("Hello")
    assert serious(v) == [] and v.width()[0] <= width
    button = ballot(v).get_by_role("button", name="A", exact=True)
    button.focus()
    v.page.keyboard.press("Enter")
    expect(said(v)).to_contain_text("You voted for")
    assert serious(v) == []
