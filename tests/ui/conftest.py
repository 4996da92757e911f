# SPDX-License-Identifier: Apache-2.0
"""A browser, a running app on a scripted engine, and visitors."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest


os.environ.setdefault("HF_HUB_OFFLINE", "1")
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -r tests/requirements.txt brings playwright")

from slim_core.paths import DEMO  # noqa: E402
from slim_core.webui.backend import Backend  # noqa: E402
from slim_core.webui.config import Config  # noqa: E402
from slim_core.webui.launch import (  # noqa: E402
    launch,
    open_engine,
    stored_results,
)
from slim_core.webui.layout import build  # noqa: E402
from tests.ui.scripted import RESULTS, ScriptedEngine  # noqa: E402
from tests.ui.visit import ARGUMENTS, SECONDS, Pages, Visit  # noqa: E402
from tests.waiting import until  # noqa: E402


sync_api.expect.set_options(timeout=15 * SECONDS)
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("the browser tests need Chromium: apt-get install -y chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def pages(browser) -> Pages:
    return Pages(browser)


class Site:
    """A running app."""

    def __init__(self, engine: Any, results: dict | None = None, **config: Any) -> None:
        settings = Config(port=free_port(), **config)
        backend = engine if isinstance(engine, Backend) else Backend(engine)
        self.engine, self.demo = backend.engine, build(backend, settings, results)
        _, self.url, _ = launch(self.demo, settings, prevent_thread_lock=True, quiet=True)

    def close(self) -> None:
        self.demo.close(verbose=False)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def running() -> Iterator[Site]:
    site = Site(ScriptedEngine(), RESULTS, max_new_tokens=4096)
    yield site
    site.close()


@pytest.fixture
def site(running) -> Site:
    """The app on a fast engine; a test may slow it down."""
    # A visitor of the test before may just have left; their work ends a moment later.
    until(lambda: running.engine.runs == running.engine.closed)
    fresh = ScriptedEngine()
    running.engine.__dict__.update({k: v for k, v in fresh.__dict__.items() if k != "queue"})
    return running


@pytest.fixture(scope="session")
def demo() -> Iterator[Site]:
    """The app on the real demo model."""
    if not (DEMO / "base").is_dir():
        pytest.skip("the demo model is not here: build it with `python -m slim_core demo build`")
    config = Config(device="cpu")
    site = Site(open_engine(config, DEMO), stored_results(config, DEMO))
    yield site
    site.close()


@pytest.fixture
def visit(pages, site) -> Iterator[Callable[..., Visit]]:
    """Opens a visitor's page, each in a browser profile of its own. No page may ask any other machine for anything."""
    visits: list[Visit] = []

    def open_page(**options: Any) -> Visit:
        visits.append(Visit(pages, options.pop("url", site.url), **options))
        return visits[-1]

    yield open_page
    for each in visits:
        each.close()
    for each in visits:
        assert each.outside == [], f"asked another machine: {each.outside}"
        assert each.errors == [], f"errors in the page: {each.errors}"


@pytest.fixture(scope="module")
def left_open() -> Iterator[dict[str, Visit]]:
    """The pages of visitors who stay, by address."""
    by_address: dict[str, Visit] = {}
    yield by_address
    for each in by_address.values():
        each.close()


@pytest.fixture
def stay(pages, left_open, request) -> Iterator[Callable[[str], Visit]]:
    """A visitor's page at an address, with a new conversation on it; open already if another test of the file had it.

    It saves the second that a page takes to load, and is for tests that change no settings and leave nothing behind
    but a conversation and a gate.
    """
    failed = request.session.testsfailed
    used: list[Visit] = []

    def come(url: str) -> Visit:
        opened = left_open.pop(url, None)
        if opened is None:
            opened = Visit(pages, url)
        else:
            opened.begin_again()
        used.append(opened)
        return opened

    yield come
    for each in used:
        assert each.outside == [], f"asked another machine: {each.outside}"
        assert each.errors == [], f"errors in the page: {each.errors}"
        # A test that failed may have left anything behind.
        if request.session.testsfailed == failed:
            left_open[each.url] = each
        else:
            each.close()


@pytest.fixture
def v(stay, site) -> Visit:
    """A new conversation with the fast engine, see `stay`."""
    return stay(site.url)
