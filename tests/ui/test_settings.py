# SPDX-License-Identifier: Apache-2.0
"""Settings survive a reload; a link restores them; limits are told in sentences."""

from playwright.sync_api import expect


def test_settings_survive_a_reload(visit):
    v = visit()
    v.open_settings()
    v.set("Seed", "42")
    v.set("System prompt", "Be brief.")
    v.page.reload()
    v.ready()
    v.open_settings()
    expect(v.page.get_by_label("Seed")).to_have_value("42")
    expect(v.page.get_by_label("System prompt")).to_have_value("Be brief.")


def test_a_link_restores_prompt_and_settings(visit):
    v = visit()
    v.open_settings()
    v.page.get_by_label("Seed").fill("5")
    v.prompt.fill("What is 1 + 1 & 2?")
    v.button("Copy link").click()
    expect(v.status).to_contain_text("is copied")
    link = v.page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(v.url) and "seed=5" in link
    other = visit()
    other.page.goto(link)
    other.ready()
    expect(other.prompt).to_have_value("What is 1 + 1 & 2?")
    other.open_settings()
    expect(other.page.get_by_label("Seed")).to_have_value("5")


def test_a_link_says_all_and_changes_nothing_of_ones_own(visit):
    v = visit()
    v.open_settings()
    v.set("Seed", "42")
    v.set("System prompt", "Be rude.")
    v.page.goto(v.url + "?prompt=Hi")
    v.ready()
    expect(v.prompt).to_have_value("Hi")
    v.open_settings()
    expect(v.page.get_by_label("Seed")).to_have_value("0")
    expect(v.page.get_by_label("System prompt")).to_have_value("")
    v.stands_still()
    v.page.goto(v.url)
    v.ready()
    v.open_settings()
    expect(v.page.get_by_label("Seed")).to_have_value("42")
    expect(v.page.get_by_label("System prompt")).to_have_value("Be rude.")


def test_a_link_with_nonsense_opens_with_the_defaults(visit):
    v = visit(query={"seed": "-4", "temperature": "NaN", "top_k": "lots", "max_new_tokens": "1e99", "prompt": "Hi"})
    expect(v.prompt).to_have_value("Hi")
    v.open_settings()
    expect(v.page.get_by_label("Seed")).to_have_value("0")


def test_a_million_characters(v):
    v.page.evaluate(
        """() => { const area = document.querySelector('#slim-prompt textarea');
        area.value = 'x'.repeat(1000000); area.dispatchEvent(new Event('input')); }"""
    )
    v.button("Compare").click()
    expect(v.warning).to_contain_text("has 1,000,000 characters; at most 100,000 can be sent")


def test_a_negative_seed_is_a_sentence_of_ours(visit):
    v = visit()
    v.open_settings()
    v.page.get_by_label("Seed").fill("-3")
    v.page.get_by_label("Seed").press("Tab")
    v.send("Hello")
    expect(v.warning).to_contain_text("Seed must be between 0")
    expect(v.prompt).to_have_value("Hello")
