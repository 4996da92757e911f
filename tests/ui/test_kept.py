# SPDX-License-Identifier: Apache-2.0
"""What a person wrote outlives a reload and a restart of the server."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from slim_core.webui.backend import Backend
from slim_core.webui.config import Config
from slim_core.webui.launch import launch
from slim_core.webui.layout import build
from slim_core.webui.state import session
from tests.ui.conftest import Site
from tests.ui.scripted import RESULTS, ScriptedEngine
from tests.ui.visit import Visit
from tests.waiting import until


NAMES = ("base", "lora", "slim")


@pytest.fixture
def mortal():
    """An app that can be started again at the same address."""
    site = Restartable()
    yield site
    site.close()


class Restartable(Site):
    def __init__(self) -> None:
        super().__init__(ScriptedEngine(), RESULTS)
        self.port = int(self.url.rstrip("/").rsplit(":", 1)[1])

    def restart(self, **engine) -> None:
        self.close()
        self.engine = ScriptedEngine(**engine)
        settings = Config(port=self.port)
        self.demo = build(Backend(self.engine), settings, RESULTS)
        launch(self.demo, settings, prevent_thread_lock=True, quiet=True)


def slow(site, seconds=0.2, length=200):
    site.engine.delay, site.engine.length = dict.fromkeys(NAMES, seconds), length


def bar(v):
    return v.page.get_by_role("region", name="From before")


def records(v):
    """What the browser keeps, as the server wrote it."""
    script = """() => Object.entries(localStorage).filter(([key]) => key.startsWith("slim-kept-"))
        .map(([, value]) => JSON.parse(value)).sort((a, b) => a.at - b.at)"""
    return v.page.evaluate(script)


def kept(v):
    """The latest prompt of each conversation that the browser keeps, oldest first."""
    return [json.loads(record["text"])["turns"][-1]["prompt"] for record in records(v)]


def drafts(v):
    """What the browser keeps of what was typed."""
    script = """() => Object.entries(localStorage).filter(([key]) => key.startsWith("slim-draft-"))
        .map(([, value]) => JSON.parse(value).text)"""
    return sorted(v.page.evaluate(script))


def restart(v, mortal):
    """The server restarts while the visitor looks elsewhere: Gradio loads an open page again by itself."""
    v.page.goto("about:blank")
    mortal.restart()
    v.go()


def reload(v):
    v.page.reload()
    v.ready()


def test_a_reload_shows_the_same_conversation(visit):
    v = visit()
    v.ask("One")
    v.ask("Two")
    answers = [v.text(name).inner_text() for name in NAMES]
    reload(v)
    expect(v.page.locator(".slim-turn")).to_have_count(2)
    assert [v.text(name).inner_text() for name in NAMES] == answers
    # The server still has it, routing and all.
    expect(v.page.locator(".slim-verdict").first).to_be_visible()
    expect(bar(v)).to_be_hidden()
    v.ask("Three")
    expect(v.text("base")).to_contain_text("turn3")


def test_answers_go_on_after_a_reload(visit, site, monkeypatch):
    monkeypatch.setattr(session, "PATIENCE", 120.0)
    slow(site)
    v = visit()
    v.send("One")
    expect(v.state("base")).to_have_text("writing")
    reload(v)
    expect(v.page.locator(".slim-bubble")).to_have_text("One")
    expect(v.state("base")).to_have_text("writing")
    site.engine.delay = {}
    v.done()
    assert [v.tokens(name) for name in NAMES] == [200, 200, 200]
    assert site.engine.runs == 1
    expect(v.prompt).to_have_value("")


@pytest.mark.nightly
def test_answers_that_ended_for_nobody_are_asked_for_again(visit, site, monkeypatch):
    monkeypatch.setattr(session, "PATIENCE", 0.1)
    slow(site)
    v = visit()
    v.open_settings()
    v.set("Seed", "7")
    v.send("One")
    expect(v.state("base")).to_have_text("writing")
    v.page.goto("about:blank")
    until(lambda: site.engine.closed, 60)
    assert site.engine.closed == 1
    slow(site, seconds=0, length=80)
    v.page.go_back()
    v.ready()
    expect(v.page.locator(".slim-bubble")).to_have_text("One")
    for name in NAMES:
        expect(v.answer(name).locator(".slim-speed")).to_contain_text("80 tokens")
        expect(v.text(name)).to_contain_text("seed7")


def test_a_restart_of_the_server_loses_nothing(visit, mortal):
    v = visit(url=mortal.url)
    v.page.get_by_role("button", name="Open", exact=True).click()
    v.ask("One")
    v.ask("Two")
    answers = [v.text(name, 0).inner_text() for name in NAMES]
    v.prompt.press_sequentially("a dra")
    until(lambda: drafts(v) == ["a dra"])
    restart(v, mortal)
    expect(v.prompt).to_have_value("a dra")
    expect(v.page.locator(".slim-turn")).to_have_count(0)
    expect(bar(v)).to_contain_text("2 prompts, the last “Two”")
    bar(v).get_by_role("button", name="Restore").click()
    expect(v.page.locator(".slim-turn")).to_have_count(2)
    expect(bar(v)).to_be_hidden()
    assert [v.text(name, 0).inner_text() for name in NAMES] == answers
    expect(v.answer("lora", 0).locator(".slim-summary")).to_contain_text("times less likely")
    expect(v.page.get_by_role("button", name="Open", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(v.prompt).to_have_value("a dra")
    assert mortal.engine.runs == 0
    v.ask("Three")
    expect(v.text("base")).to_contain_text("turn3")


def test_an_answer_that_a_restart_cut_off_is_asked_for_again(visit, mortal):
    slow(mortal)
    v = visit(url=mortal.url)
    v.open_settings()
    v.set("Seed", "11")
    v.set("System prompt", "Be brief.")
    v.send("One")
    expect(v.state("base")).to_have_text("writing")
    v.page.evaluate("localStorage.removeItem('slim-compare-settings')")
    restart(v, mortal)
    expect(bar(v)).to_contain_text("1 prompt, the last “One”")
    bar(v).get_by_role("button", name="Restore").click()
    expect(v.page.locator(".slim-bubble")).to_have_text("One")
    v.done()
    for name in NAMES:
        expect(v.text(name)).to_contain_text("seed11 One")
    assert mortal.engine.runs == 1
    # What is kept is whole now.
    restart(v, mortal)
    bar(v).get_by_role("button", name="Restore").click()
    expect(v.text("slim")).to_contain_text("seed11 One")
    assert mortal.engine.runs == 0


@pytest.mark.nightly
def test_a_page_that_was_open_all_the_time_can_restore_too(visit, mortal):
    v = visit(url=mortal.url)
    v.ask("One")
    v.prompt.press_sequentially("Two")
    mortal.restart()
    # Gradio loads a page again that has lost its server.
    bar(v).get_by_role("button", name="Restore").click()
    expect(v.page.locator(".slim-bubble")).to_have_text("One")
    expect(v.prompt).to_have_value("Two")
    v.prompt.press("Enter")
    expect(v.text("base")).to_contain_text("turn2")
    v.done()


@pytest.mark.nightly
def test_something_new_is_never_overwritten(visit, mortal):
    v = visit(url=mortal.url)
    v.ask("Old")
    restart(v, mortal)
    v.ask("New")
    expect(bar(v)).to_be_hidden()
    restart(v, mortal)
    # Both are there, the latest first.
    expect(bar(v)).to_contain_text("the last “New”")
    bar(v).get_by_role("button", name="Discard").click()
    expect(bar(v)).to_contain_text("the last “Old”")
    bar(v).get_by_role("button", name="Restore").click()
    expect(v.page.locator(".slim-bubble")).to_have_text("Old")
    assert kept(v) == ["Old"]


def test_a_new_conversation_empties_what_is_kept(visit, mortal):
    v = visit(url=mortal.url)
    v.ask("One")
    assert kept(v) == ["One"]
    v.button("New conversation").click()
    expect(v.page.locator(".slim-turn")).to_have_count(0)
    until(lambda: kept(v) == [])
    restart(v, mortal)
    expect(bar(v)).to_be_hidden()
    v.ask("Two")
    v.button("Undo").click()
    expect(v.page.locator(".slim-turn")).to_have_count(0)
    until(lambda: kept(v) == [])


@pytest.mark.nightly
def test_a_second_tab_leaves_the_first_alone(visit, mortal):
    v = visit(url=mortal.url)
    v.ask("First")
    tab = v.page.context.new_page()
    other = Visit.of(tab, mortal.url)
    # What another tab shows is not offered, and nothing tells when the page has asked the other tabs.
    other.page.wait_for_timeout(600)
    expect(bar(other)).to_be_hidden()
    expect(other.page.locator(".slim-turn")).to_have_count(0)
    other.ask("Second")
    assert kept(v) == ["First", "Second"]
    other.button("New conversation").click()
    expect(other.page.locator(".slim-turn")).to_have_count(0)
    until(lambda: kept(v) == ["First"])
    reload(v)
    expect(v.page.locator(".slim-bubble")).to_have_text("First")
    # The first is closed: the next tab offers what it left.
    v.page.goto("about:blank")
    restart(other, mortal)
    expect(bar(other)).to_contain_text("the last “First”")
    tab.close()


@pytest.mark.nightly
def test_a_duplicated_tab_is_another_one(visit):
    v = visit()
    v.ask("First")
    state = v.page.evaluate("sessionStorage.getItem('slim-tab')")
    tab = v.page.context.new_page()
    tab.add_init_script(f"if (!sessionStorage.getItem('slim-tab')) sessionStorage.setItem('slim-tab', {state!r});")
    other = Visit.of(tab, v.url)
    expect(other.page.locator(".slim-turn")).to_have_count(0)
    other.ask("Second")
    expect(v.page.locator(".slim-bubble")).to_have_text("First")
    assert kept(v) == ["First", "Second"]
    tab.close()


def test_typed_text_of_a_tab_that_was_closed_is_offered(visit):
    v = visit()
    v.prompt.press_sequentially("half a thou")
    until(lambda: drafts(v) == ["half a thou"])
    v.page.evaluate("sessionStorage.clear()")
    reload(v)
    expect(v.prompt).to_have_value("")
    expect(bar(v)).to_contain_text("Restore what was typed before? “half a thou”")
    bar(v).get_by_role("button", name="Restore").click()
    expect(v.prompt).to_have_value("half a thou")
    expect(bar(v)).to_be_hidden()


def test_a_prompt_that_the_server_never_got_comes_back(visit):
    v = visit()
    lost = [True]
    v.page.route("**/queue/join*", lambda route: None if lost else route.continue_())
    v.send("One")
    expect(v.prompt).to_have_value("")
    until(lambda: drafts(v) == ["One"])
    lost.clear()
    reload(v)
    expect(v.prompt).to_have_value("One")
    expect(v.page.locator(".slim-turn")).to_have_count(0)


@pytest.mark.nightly
def test_a_link_comes_before_what_was_typed_and_both_stay(visit):
    v = visit()
    v.prompt.press_sequentially("a draft")
    until(lambda: drafts(v) == ["a draft"])
    v.go(prompt="From the link")
    expect(v.prompt).to_have_value("From the link")
    expect(bar(v)).to_contain_text("“a draft”")
    v.prompt.press("End")
    v.prompt.press_sequentially(", changed")
    until(lambda: drafts(v) == ["From the link, changed", "a draft"])
    reload(v)
    expect(v.prompt).to_have_value("From the link, changed")
    bar(v).get_by_role("button", name="Restore").click()
    expect(v.prompt).to_have_value("From the link, changed\n\na draft")
    v.prompt.fill("")
    until(lambda: drafts(v) == [])
    v.go(prompt="From the link")
    v.prompt.press("Enter")
    v.done()
    # It is part of the conversation now, and not asked again.
    reload(v)
    expect(v.page.locator(".slim-bubble")).to_have_text("From the link")
    expect(v.prompt).to_have_value("")


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: "no JSON", "This is not a conversation that this app saved."),
        (lambda data: data | {"format": "x"}, "This is not a conversation that this app exported."),
        (lambda data: data | {"asked": {"columns": "base"}}, "must be an object with a list of columns"),
        (lambda data: data | {"gates": {"slim": {"strength": 1e9}}}, "Strength must be between 0 and 100"),
    ],
    ids=["text", "format", "asked", "strength"],
)
def test_what_is_kept_is_checked_like_a_file(visit, mortal, change, sentence):
    v = visit(url=mortal.url)
    v.ask("One")
    (record,) = records(v)
    broken = change(json.loads(record["text"]))
    # It must look like a conversation to the browser, so that it is offered at all.
    v.page.evaluate(
        """text => { const key = Object.keys(localStorage).find((name) => name.startsWith("slim-kept-"));
        const old = JSON.parse(localStorage[key]); localStorage[key] = JSON.stringify({ ...old, text }); }""",
        broken if isinstance(broken, str) else json.dumps(broken),
    )
    restart(v, mortal)
    if isinstance(broken, str):
        v.page.wait_for_timeout(600)  # nothing tells when the page has looked
        expect(bar(v)).to_be_hidden()
        return
    bar(v).get_by_role("button", name="Restore").click()
    expect(v.warning).to_contain_text("What this browser saved cannot be restored.")
    expect(v.warning).to_contain_text(sentence)
    expect(v.page.locator(".slim-turn")).to_have_count(0)
    expect(bar(v)).to_be_visible()
    v.ask("a good one")


def test_what_is_kept_is_bounded(visit):
    v = visit()
    v.ask("One")
    v.page.evaluate(
        """() => { const text = JSON.stringify({ turns: [{ prompt: "x".repeat(900000) }] });
        for (let i = 0; i < 12; i++) slim.kept.talk(`other${i}`, text); }"""
    )
    size, ids = v.page.evaluate(
        """() => [Object.values({ ...localStorage }).join("").length,
        Object.keys(localStorage).filter((key) => key.startsWith("slim-kept-other"))]"""
    )
    assert size < 4_100_000
    # The latest are there.
    assert sorted(ids) == [f"slim-kept-other{i}" for i in (10, 11, 8, 9)]


@pytest.mark.nightly
def test_who_restores_is_told_which_adapter_to_add_again(visit, mortal):
    v = visit(url=mortal.url)
    v.ask("One")
    v.page.wait_for_function("() => Object.keys(localStorage).some((key) => key.startsWith('slim-kept-'))")
    v.page.evaluate("""() => {
        const key = Object.keys(localStorage).find((key) => key.startsWith("slim-kept-"));
        const record = JSON.parse(localStorage[key]), text = JSON.parse(record.text);
        text.own = { lora: "Mine" };
        localStorage[key] = JSON.stringify({ ...record, text: JSON.stringify(text) });
    }""")
    restart(v, mortal)
    bar(v).get_by_role("button", name="Restore").click()
    expect(v.warning).to_contain_text("Your adapter “Mine” is no longer here; add it again under Adapters.")
