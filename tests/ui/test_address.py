# SPDX-License-Identifier: Apache-2.0
"""Tabs are in the address: a link opens one, Back and Forward go from one to the other."""

from playwright.sync_api import expect


def shown(v, name):
    expect(v.page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")


def hash_of(v):
    return v.page.evaluate("location.hash")


def test_back_and_forward_go_from_tab_to_tab(visit):
    v = visit()
    assert hash_of(v) == ""
    before = v.page.evaluate("history.length")
    for name, fragment in (("Routing", "#tab=routing"), ("Drift", "#tab=drift"), ("Compare", "")):
        v.tab(name)
        shown(v, name)
        v.page.wait_for_function("fragment => location.hash === fragment", arg=fragment)
    # One entry for each tab that was opened; the open one again is none.
    v.tab("Compare")
    v.stands_still()
    assert v.page.evaluate("history.length") == before + 3
    for name, fragment in (("Drift", "#tab=drift"), ("Routing", "#tab=routing"), ("Compare", "")):
        v.page.go_back()
        shown(v, name)
        assert hash_of(v) == fragment
    v.page.go_forward()
    shown(v, "Routing")
    assert v.page.evaluate("history.length") == before + 3


def test_a_link_to_a_tab_opens_it(visit):
    v = visit()
    v.ask("Hello there")
    v.tab("Drift")
    shown(v, "Drift")
    v.page.wait_for_function("location.hash === '#tab=drift'")
    v.page.reload()
    v.ready()
    shown(v, "Drift")
    # The conversation is there too.
    expect(v.page.locator("#slim-drift .slim-sentence").first).to_contain_text("finds the base’s answer")
    # A tab that is not there is not opened.
    v.page.goto(v.url + "#tab=<b>nothing</b>")
    v.page.reload()
    v.ready()
    shown(v, "Compare")
    v.page.wait_for_function("location.hash === ''")


def test_a_link_of_the_page_itself_is_followed(visit):
    v = visit()
    v.page.get_by_role("button", name="Change the adapter of LoRA").click()
    shown(v, "Adapters")
    v.page.wait_for_function("location.hash === '#tab=adapters'")
    v.page.go_back()
    shown(v, "Compare")
