# SPDX-License-Identifier: Apache-2.0
"""Several visitors: a line with places, nobody sees another's, and whoever leaves stops their work."""

from collections import OrderedDict

from playwright.sync_api import expect

from slim_core.webui.state import session
from tests.waiting import until


def slow(site, seconds=0.08, length=60):
    site.engine.delay = dict.fromkeys(("base", "lora", "slim"), seconds)
    site.engine.length = length


def test_two_visitors_wait_in_line_and_see_only_their_own(visit, site):
    slow(site, length=200)
    first, second = visit(), visit()
    first.send("zebras")
    expect(first.state("base")).to_have_text("writing")
    second.send("quinces")
    expect(second.state("base")).to_have_text("waiting, 1 ahead of you in line")
    expect(second.status).to_have_text("Waiting in line: 1 ahead of you.")
    # Who waits can leave the line.
    second.button("Stop all").click()
    expect(second.state("base")).to_have_text("stopped")
    second.done()
    expect(first.state("base")).to_have_text("writing")
    second.send("quinces again")
    expect(second.state("base")).to_have_text("waiting, 1 ahead of you in line")
    first.button("Stop all").click()
    expect(second.state("base")).to_have_text("writing")
    expect(second.text("base")).to_contain_text("quinces")
    second.button("Stop all").click()
    second.done()
    expect(first.text("base")).to_contain_text("zebras")
    expect(second.text("base")).to_contain_text("quinces")
    assert "quinces" not in first.page.content()
    assert "zebras" not in second.page.content()


def test_closing_the_tab_stops_the_work(visit, site, monkeypatch):
    monkeypatch.setattr(session, "PATIENCE", 0.1)
    slow(site, length=2000)
    v = visit()
    v.send("a very long story")
    expect(v.state("base")).to_have_text("writing")
    assert site.engine.closed == 0
    v.page.close()
    until(lambda: site.engine.closed == 1)


def forget(site):
    """As a restart does, or a hundred visitors more."""
    # A new dictionary: while the old one was emptied, a page that asks just then would leave half an entry in it.
    site.demo.state_holder.session_data = OrderedDict()


def test_who_was_forgotten_is_told(visit, site):
    v = visit()
    v.ask("zebras")
    forget(site)
    v.button("Retry all").click()
    expect(v.warning).to_contain_text("has forgotten this conversation")
    expect(v.page.locator(".slim-turn")).to_have_count(0)
    v.ask("quinces")
    expect(v.text("base")).to_contain_text("turn1")
    # A prompt to an app that has forgotten is kept.
    forget(site)
    v.send("figs")
    expect(v.prompt).to_have_value("figs")
    expect(v.page.locator(".slim-turn")).to_have_count(0)
    expect(v.warning).to_contain_text("has forgotten this conversation")
    v.prompt.press("Enter")
    expect(v.text("base")).to_contain_text("figs")
