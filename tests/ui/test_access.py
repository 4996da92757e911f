# SPDX-License-Identifier: Apache-2.0
"""Keyboard, screen reader, narrow and wide windows, light and dark."""

import pytest
from playwright.sync_api import expect

from slim_core.webui.tab_list import TABS as TAB_LIST


axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install -r tests/requirements.txt")
TABS = [tab.title for tab in TAB_LIST]


def open_tab(v, name):
    tab = v.page.get_by_role("tab", name=name)
    if not tab.is_visible():
        v.page.get_by_role("button", name="More tabs").or_(v.page.locator(".overflow-menu > button")).first.click()
        tab = v.page.locator(".overflow-dropdown").get_by_text(name)
    tab.click()
    v.stands_still()


def serious(v):
    """Violations of serious or critical level outside Gradio's own footer."""
    violations = axe.Axe().run(v.page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        (violation["id"], node["target"], node["failureSummary"][:200])
        for violation in violations
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
        if not any("footer" in str(target) for target in node["target"])
    ]


@pytest.mark.parametrize(
    ("theme", "width"),
    [
        pytest.param("light", 1280, id="light"),
        pytest.param("dark", 1280, id="dark", marks=pytest.mark.nightly),
        pytest.param("light", 390, id="phone", marks=pytest.mark.nightly),
        pytest.param("dark", 390, id="dark phone", marks=pytest.mark.nightly),
    ],
)
def test_axe_finds_nothing_serious_on_any_tab(visit, theme, width):
    v = visit(theme=theme, width=width)
    assert serious(v) == []
    v.ask("Hello there")
    v.open_settings()
    for name in TABS:
        open_tab(v, name)
        if name == "Routing":
            v.page.locator("#slim-routing .slim-strip [role=option]").nth(3).click()
            expect(v.page.locator("#slim-detail h2")).to_be_visible()
        assert serious(v) == [], name
        assert v.width()[0] <= width, name
    open_tab(v, "Compare")
    for label in ("Differences from base", "Coloured by routing"):
        v.page.get_by_label(label).check()
        v.stands_still()
        assert serious(v) == [], label


@pytest.mark.parametrize("theme", [pytest.param("light", marks=pytest.mark.nightly), "dark"])
def test_axe_finds_nothing_serious_in_a_failed_check(visit, theme):
    v = visit(theme=theme)
    open_tab(v, "Adapters")
    open_tab(v, "Hugging Face")
    v.page.locator("#slim-own-id textarea").fill("../../etc")
    v.page.locator("#slim-use-hub").click()
    expect(v.page.locator(".slim-checks [data-state=failed]")).to_contain_text("is not a Hub id")
    assert serious(v) == []


def test_what_scrolls_can_be_scrolled_with_the_keyboard(v, site):
    site.engine.blocks = 40
    v.ask("Short")
    v.ask("\n".join(f"line {i}" for i in range(60)))
    short, long = v.page.locator(".slim-bubble").all()
    expect(long).to_have_attribute("tabindex", "0")
    expect(v.page.get_by_role("group", name="Prompt 2", exact=True)).to_contain_text("line 59")
    for name in ("tabindex", "role", "aria-label"):
        assert short.get_attribute(name) is None
    assert serious(v) == []

    def scroll(region):
        region.focus()
        expect(region).to_be_focused()
        v.page.keyboard.press("End")
        v.page.wait_for_function("document.activeElement.scrollTop > 0")

    scroll(long)
    open_tab(v, "Routing")
    layers = v.page.get_by_role("list", name="Share of each layer")
    expect(layers.get_by_role("listitem")).to_have_count(40)
    expect(layers).to_have_attribute("tabindex", "0")
    assert serious(v) == []
    scroll(layers)
    # What is in full view is no stop on the way, until it no longer is.
    experts = v.page.get_by_role("list", name="Weight of each expert")
    assert experts.get_attribute("tabindex") is None
    experts.evaluate("node => { node.style.maxHeight = '80px'; }")
    expect(experts).to_have_attribute("tabindex", "0")
    scroll(experts)


def test_nothing_scrolls_sideways(visit):
    v = visit(width=320)
    v.ask("Supercalifragilisticexpialidocious" * 8)
    for name in TABS:
        open_tab(v, name)
        for width in (3840, 768, 390, 320):
            v.page.set_viewport_size({"width": width, "height": 900})
            v.stands_still()
            assert v.width()[0] <= width, name


@pytest.mark.parametrize("width", [1440, pytest.param(1920, marks=pytest.mark.nightly)])
def test_the_page_stands_still_from_tab_to_tab(visit, width):
    v = visit(width=width)
    parts = [v.page.locator("#slim-header header"), v.page.get_by_role("tab", name="Compare")]
    places = {}
    for asked in (False, True):
        if asked:
            v.ask("Hello there")
        for name in TABS:
            open_tab(v, name)
            places[name, asked] = [part.bounding_box()["x"] for part in parts]
        open_tab(v, "Compare")
    assert len({tuple(x) for x in places.values()}) == 1, places


def columns(v):
    return len({round(v.answer(name).bounding_box()["x"]) for name in ("base", "lora", "slim")})


def test_phone_stacks_and_desktop_sets_side_by_side(visit):
    v = visit(width=390)
    v.ask("Hello")
    assert columns(v) == 1
    # A phone gives its width to the answers.
    assert v.answer("slim").bounding_box()["width"] > 350
    v.page.set_viewport_size({"width": 1280, "height": 900})
    v.stands_still()
    assert columns(v) == 3


def test_who_wants_no_motion_gets_none(visit, site):
    site.engine.delay, site.engine.length = dict.fromkeys(("base", "lora", "slim"), 0.1), 60
    v = visit()
    v.page.emulate_media(reduced_motion="reduce")
    v.send("Hello")
    expect(v.state("base")).to_have_text("writing")
    script = "getComputedStyle(document.querySelector('.slim-state'), '::before').animationDuration"
    assert v.page.evaluate(script) in ("0.00001s", "1e-05s", "0.01ms")
    v.button("Stop all").click()
    v.done()


def test_with_the_keyboard_alone(visit, site):
    site.engine.delay = dict.fromkeys(("base", "lora", "slim"), 0.1)
    site.engine.length = 1000
    v = visit()
    expect(v.prompt).to_be_focused()
    v.page.keyboard.type("Hello")
    v.page.keyboard.press("Enter")
    expect(v.state("lora")).to_have_text("writing")

    def go_to(name, most=60, back=False):
        for _ in range(most):
            v.page.keyboard.press("Shift+Tab" if back else "Tab")
            label = v.page.evaluate(
                "document.activeElement.getAttribute('aria-label') || document.activeElement.innerText || ''"
            )
            if label.strip() == name:
                return
        raise AssertionError(f"{name} is not reached")

    go_to("Stop LoRA", back=True)
    v.page.keyboard.press("Enter")
    expect(v.state("lora")).to_have_text("stopped")
    go_to("Stop all")
    v.page.keyboard.press("Enter")
    v.done()
    v.page.get_by_role("tab", name="Compare").focus()
    v.page.keyboard.press("Tab")
    v.page.get_by_role("tab", name="Routing").focus()
    v.page.keyboard.press("Enter")
    expect(v.page.locator(".slim-heat")).to_be_visible()


def test_one_polite_line_speaks(v):
    v.ask("Hello")
    spoken = v.page.evaluate(
        "[...document.querySelectorAll('[aria-live=polite],[role=status],[role=log]')].map(e => e.textContent)"
    )
    assert [text for text in spoken if text] == [v.status.inner_text()]
    expect(v.status).to_have_text(
        "Base: done, 12 tokens. LoRA: done, 12 tokens. SLIM: done, 12 tokens, partly like the training data."
    )
