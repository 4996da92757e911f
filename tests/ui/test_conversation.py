# SPDX-License-Identifier: Apache-2.0
"""Several turns: own histories, retry, undo, edit, new."""

from playwright.sync_api import expect


def test_each_variant_goes_on_with_its_own_history(v, site):
    seen = []
    answer = site.engine.answer

    def listen(rows, *args, **kwargs):
        seen.append({row.variant: row.messages for row in rows})
        return answer(rows, *args, **kwargs)

    site.engine.answer = listen
    try:
        v.ask("One")
        v.ask("Two")
    finally:
        del site.engine.answer
    for name, label in (("base", "Base"), ("slim", "SLIM")):
        roles = [message.role for message in seen[1][name]]
        assert roles == ["user", "assistant", "user"]
        assert seen[1][name][1].content.startswith(f"{label} says:")
    expect(v.text("slim")).to_contain_text("turn2")


def test_retry_answers_again_with_the_settings_of_now(visit):
    v = visit()
    v.ask("Hello")
    expect(v.text("base")).to_contain_text("seed0")
    v.open_settings()
    v.set("Seed", "7")
    v.button("Retry all").click()
    expect(v.text("base")).to_contain_text("seed7")
    v.done()
    expect(v.page.locator(".slim-turn")).to_have_count(1)
    expect(v.text("lora")).to_contain_text("turn1 seed7")
    # Of one column it leaves the others.
    v.set("Seed", "3")
    v.page.get_by_role("button", name="Let LoRA answer again").click()
    expect(v.text("lora")).to_contain_text("seed3")
    v.done()
    expect(v.text("base")).to_contain_text("seed7")
    expect(v.text("slim")).to_contain_text("seed7")
    # The base's answer is known, so the drift is measured again.
    expect(v.answer("lora").locator(".slim-summary")).to_contain_text("times less likely")


def test_undo_gives_the_prompt_back(v):
    v.ask("One")
    v.ask("Two")
    v.button("Undo").click()
    expect(v.page.locator(".slim-turn")).to_have_count(1)
    expect(v.prompt).to_have_value("Two")
    v.button("Undo").click()
    expect(v.page.locator(".slim-turn")).to_have_count(0)
    expect(v.button("Undo")).to_have_count(0)


def test_edit_an_earlier_prompt(v):
    v.ask("One")
    v.ask("Two")
    v.page.get_by_role("button", name="Edit prompt 1").click()
    area = v.page.get_by_label("The prompt, edited")
    expect(area).to_have_value("One")
    area.fill("Uno")
    v.button("Answer again").click()
    expect(v.page.locator(".slim-turn")).to_have_count(1)
    v.done()
    expect(v.page.locator(".slim-bubble")).to_have_text("Uno")
    expect(v.text("base")).to_contain_text("turn1 seed0 Uno")


def test_an_edit_can_be_cancelled(v):
    v.ask("One")
    v.page.get_by_role("button", name="Edit prompt 1").click()
    v.page.get_by_label("The prompt, edited").fill("Uno")
    v.page.keyboard.press("Escape")
    expect(v.page.locator(".slim-bubble")).to_have_text("One")
    expect(v.page.get_by_role("button", name="Edit prompt 1")).to_be_focused()


def test_an_edit_sent_while_answers_are_written_is_not_lost(v, site):
    v.ask("One")
    v.page.get_by_role("button", name="Edit prompt 1").click()
    v.page.get_by_label("The prompt, edited").fill("Uno")
    site.engine.delay, site.engine.length = dict.fromkeys(("base", "lora", "slim"), 0.1), 100
    v.send("Two")
    expect(v.state("base")).to_have_text("writing")
    v.button("Answer again").click()
    expect(v.status).to_contain_text("Answers are still being written.")
    expect(v.page.get_by_label("The prompt, edited")).to_have_value("Uno")
    v.button("Stop all").click()
    v.done()


def test_new_conversation(v):
    v.ask("One")
    v.button("New conversation").click()
    expect(v.page.locator(".slim-turn")).to_have_count(0)
    v.ask("Two")
    expect(v.text("base")).to_contain_text("turn1")
