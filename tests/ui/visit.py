# SPDX-License-Identifier: Apache-2.0
"""A visitor: what a person does on the page and what they see."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from playwright.sync_api import Browser, Locator, Page, Request, ViewportSize, expect

from tests.waiting import PATIENCE


ARGUMENTS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
]
# Milliseconds.
SECONDS = 1000 * PATIENCE
WINDOW: ViewportSize = {"width": 1280, "height": 900}
# What the browser has stored of the settings.
STORED = 'localStorage.getItem("slim-compare-settings")'
# Until ten frames in a row have drawn the same page and nothing moves that ever ends.
STANDS_STILL = """async () => {
    const said = (field) => field.value + field.checked;
    const fields = () => [...document.querySelectorAll("input, textarea")].map(said).join();
    const ends = (animation) => Number.isFinite(animation.effect.getComputedTiming().endTime);
    const moves = () => document.getAnimations().some((one) => one.playState === "running" && ends(one));
    let changed = false, before = fields();
    const observer = new MutationObserver(() => { changed = true; });
    observer.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
    for (let calm = 0, frames = 0; calm < 10; calm++) {
        await new Promise(requestAnimationFrame);
        if (++frames > 1800) throw new Error("the page never stands still");
        const now = fields();
        if (changed || now !== before || moves()) calm = -1;
        [changed, before] = [false, now];
    }
    observer.disconnect();
}"""
# Notes whether anything of the conversation changes.
WATCH = """() => {
    window.slimChanged = false;
    const observer = new MutationObserver(() => { window.slimChanged = true; observer.disconnect(); });
    const all = { subtree: true, childList: true, attributes: true, characterData: true };
    observer.observe(document.querySelector(".slim-compare"), all);
}"""


class Pages:
    """Pages of visitors who have left, for those who come: a page that has read Gradio's scripts opens them faster.

    Each is alone in a browser profile.
    """

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._left: list[Page] = []

    def take(self, url: str) -> Page:
        """A blank page, and in its profile nothing that `url` would find there but the files that a browser caches."""
        if self._left:
            page = self._left.pop()
        else:
            context = self._browser.new_context(permissions=["clipboard-read", "clipboard-write"])
            context.set_default_timeout(30 * SECONDS)
            page = context.new_page()
        devtools = page.context.new_cdp_session(page)
        kept = {"origin": url.rstrip("/"), "storageTypes": "cookies,local_storage,indexeddb,cache_storage"}
        devtools.send("Storage.clearDataForOrigin", kept)
        devtools.detach()
        return page

    def give_back(self, page: Page) -> None:
        """A visitor leaves, if they have not closed their page themselves."""
        if page.is_closed():
            page.context.close()
            return
        page.unroute_all()
        # The tab's own store is none of those that `take` clears.
        page.evaluate("try { sessionStorage.clear(); } catch { /* a page that has none */ }")
        page.emulate_media(media="null", color_scheme="null", reduced_motion="null")
        page.goto("about:blank")
        # A browser remembers 50 addresses of a page; past them its history grows no longer.
        devtools = page.context.new_cdp_session(page)
        devtools.send("Page.resetNavigationHistory")
        devtools.detach()
        page.mouse.move(-1, -1)  # nothing of the next visitor's is under it
        self._left.append(page)


class Visit:
    """One visitor's page.

    Attributes:
        page: Playwright's.
        outside: addresses of other machines that the page asked for.
        errors: errors that its scripts threw.
    """

    def __init__(
        self,
        pages: Pages,
        url: str,
        width: int = WINDOW["width"],
        height: int = WINDOW["height"],
        theme: str = "light",
        query: dict[str, Any] | None = None,
    ) -> None:
        self._pages = pages
        self.page = pages.take(url)
        self.page.set_viewport_size({"width": width, "height": height})
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", self._requested)
        self.page.on("pageerror", self._failed)
        self.url = url
        self.go(theme=theme, **(query or {}))

    @classmethod
    def of(cls, page: Page, url: str) -> Visit:
        """A visit in a tab that is there, in the profile of another."""
        visit = cls.__new__(cls)
        visit.page, visit.url, visit.outside, visit.errors = page, url, [], []
        visit.go()
        return visit

    def _failed(self, error: Exception) -> None:
        self.errors.append(str(error))

    def _requested(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme in ("http", "https", "ws", "wss") and address.hostname not in ("127.0.0.1", "localhost"):
            self.outside.append(request.url)

    def go(self, theme: str = "light", **query: Any) -> None:
        self.page.goto(f"{self.url}?{urlencode({'__theme': theme, **query})}")
        self.ready()

    def ready(self) -> None:
        expect(self.page.locator("#slim-transcript .slim-head")).not_to_have_count(0, timeout=15 * SECONDS)
        # The page's first event has answered: settings and link are in place.
        expect(self.page.locator(".slim-compare")).to_have_attribute("data-ready", "true")

    def begin_again(self) -> None:
        """A new conversation with gates as trained, on the page as it stands."""
        self.page.mouse.move(-1, -1)
        self.page.set_viewport_size(WINDOW)
        self.close_notices()
        self.tab("Compare")
        self.prompt.fill("")
        asked = self.page.locator(".slim-turn").count() > 0
        if self.button("As trained").get_attribute("aria-pressed") == "false":
            self.button("As trained").click()
            # Once it is said, the server knows it too.
            if asked:
                expect(self.answer("slim").locator(".slim-how")).not_to_contain_text("gate")
                self.done()
        if asked:
            self.page.get_by_label("Answers", exact=True).check()
            self.button("New conversation").click()
            expect(self.page.locator(".slim-turn")).to_have_count(0)
        self.page.evaluate("scrollTo(0, 0)")

    def close_notices(self) -> None:
        """Closes all at once, on the page: a notice also goes by itself, perhaps just when it would be clicked."""
        self.page.evaluate("for (const button of document.querySelectorAll('.toast-close')) button.click()")
        expect(self.page.locator(".toast-close")).to_have_count(0)

    def close(self) -> None:
        self.page.remove_listener("request", self._requested)
        self.page.remove_listener("pageerror", self._failed)
        self._pages.give_back(self.page)

    # ---- what a person does

    @property
    def prompt(self) -> Locator:
        return self.page.locator("#slim-prompt textarea")

    def send(self, text: str) -> None:
        self.prompt.fill(text)
        self.prompt.press("Enter")

    def ask(self, text: str) -> None:
        """Send, and wait until all have answered."""
        before = self.page.locator(".slim-turn").count()
        self.send(text)
        expect(self.page.locator(".slim-turn")).to_have_count(before + 1)
        self.done()

    def done(self) -> None:
        expect(self.page.locator(".slim-compare")).to_have_attribute("data-running", "false", timeout=30 * SECONDS)

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def open_settings(self) -> None:
        """Open the settings, and wait until what they hold stands still: it is put in place after they are open."""
        self.page.get_by_text("Settings: sampling").click()
        expect(self.page.get_by_label("Seed")).to_be_visible()
        self.stands_still()

    def set(self, label: str, value: str) -> None:
        """Change a field of the settings, and wait until the browser has stored it."""
        before = self.page.evaluate(STORED)
        self.page.get_by_label(label).fill(value)
        self.page.get_by_label(label).blur()
        self.page.wait_for_function(f"before => {STORED} !== before", arg=before)
        self.stands_still()

    def stands_still(self) -> None:
        """Wait until the page does, in its own frames: on a busy machine they are rarer."""
        self.page.evaluate(STANDS_STILL)

    def again(self, name: str) -> None:
        """Click a button that lets answers be written again, and wait until they are; that may be over at once."""
        self.page.evaluate(WATCH)
        self.button(name).click()
        self.page.wait_for_function("window.slimChanged")
        self.done()

    def upload(self, path: Path) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.button("Import JSON").click()
        chooser.value.set_files(path)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    # ---- what a person sees

    def answer(self, name: str, turn: int = -1) -> Locator:
        return self.page.locator(".slim-turn").nth(turn).locator(f".slim-answer[data-column={name}]")

    def text(self, name: str, turn: int = -1) -> Locator:
        return self.answer(name, turn).locator("> .slim-text")

    def state(self, name: str) -> Locator:
        return self.answer(name).locator(".slim-state")

    def tokens(self, name: str) -> int:
        match = re.search(r"([\d,]+) token", self.answer(name).locator(".slim-speed").inner_text())
        return int(match[1].replace(",", "")) if match else 0

    @property
    def status(self) -> Locator:
        return self.page.locator("#slim-status [role=status]")

    @property
    def warning(self) -> Locator:
        return self.page.locator(".toast-body").last

    def width(self) -> tuple[int, int]:
        """Of the page's content and of the window."""
        # Gradio's container hides what is too wide for it, so the document alone would not tell.
        script = """() => {
            const parts = document.querySelectorAll('html, .gradio-container, .gradio-container main, .tabitem');
            return [Math.max(...[...parts].map((part) => part.scrollWidth)), innerWidth]; }"""
        return tuple(self.page.evaluate(script))
