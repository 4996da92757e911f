# SPDX-License-Identifier: Apache-2.0
"""Pictures of the app; SLIM_SCREENSHOTS names the folder where they stay, `-m ""` takes all."""

import os
from pathlib import Path

import pytest
from playwright.sync_api import expect


@pytest.mark.parametrize(
    ("name", "theme", "width", "tab"),
    [
        ("compare-light", "light", 1440, "Compare"),
        pytest.param("compare-dark", "dark", 1440, "Compare", marks=pytest.mark.nightly),
        ("compare-phone", "light", 390, "Compare"),
        pytest.param("routing", "light", 1440, "Routing", marks=pytest.mark.nightly),
    ],
)
def test_screenshot(visit, demo, tmp_path, name, theme, width, tab):
    v = visit(url=demo.url, theme=theme, width=width)
    v.ask("What kind of animal is a whale? A. bird B. mammal C. fish D. insect")
    v.tab(tab)
    if tab == "Routing":
        v.page.locator("#slim-routing .slim-strip [role=option]").nth(6).click()
        expect(v.page.locator("#slim-detail h2")).to_be_visible()
    folder = Path(os.environ.get("SLIM_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    v.page.screenshot(path=path, full_page=width > 400)
    assert path.stat().st_size > 10_000
