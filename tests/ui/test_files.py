# SPDX-License-Identifier: Apache-2.0
"""Export, import, and the picture of the routing."""

import json

from PIL import Image
from playwright.sync_api import expect


def save(v, button):
    with v.page.expect_download() as download:
        v.button(button).click()
    return download.value


def test_export_and_import_round_trip(visit, tmp_path):
    v = visit()
    v.ask("Hello")
    v.ask("And again")
    download = save(v, "Export JSON")
    assert download.suggested_filename == "slim-compare.json"
    path = tmp_path / "conversation.json"
    download.save_as(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    assert [turn["prompt"] for turn in data["turns"]] == ["Hello", "And again"]
    answer = data["turns"][0]["answers"]["slim"]
    assert answer["sampling"]["seed"] == 0 and answer["routing"]["weights"]["base64"]
    assert data["turns"][0]["drift"]["variants"][0]["variant"] == "lora"

    other = visit()
    other.upload(path)
    expect(other.page.locator(".slim-turn")).to_have_count(2)
    assert other.text("slim").inner_text() == v.text("slim").inner_text()
    expect(other.answer("lora").locator(".slim-summary")).to_contain_text("10⁶ times less likely")
    other.tab("Routing")
    expect(other.page.locator(".slim-heat canvas")).to_be_visible()
    other.tab("Compare")
    # It goes on where it stopped.
    other.ask("Third")
    expect(other.text("base")).to_contain_text("turn3")


def test_a_file_that_is_no_conversation(v, tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"format": "something else"}')
    v.upload(path)
    expect(v.warning).to_contain_text("not a conversation that this app exported")
    v.ask("Hello")


def test_html_in_a_notice_stays_text(v, tmp_path):
    v.ask("Hello")
    path = tmp_path / "conversation.json"
    save(v, "Export JSON").save_as(path)
    attack = "<b id=evil>Sign in again</b><img src=http://127.0.0.1:9/pixel.png>"
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(data | {"base": attack}))
    asked = []
    v.page.on("request", lambda request: asked.append(request.url))
    v.upload(path)
    expect(v.warning).to_contain_text("This conversation was held with <b id=evil>Sign in again</b>")
    assert v.page.locator("#evil").count() == 0 and not any("pixel" in url for url in asked)


def test_routing_as_png(v):
    v.ask("Hello")
    v.tab("Routing")
    download = save(v, "Save as PNG")
    assert download.suggested_filename == "slim-routing.png"
    with Image.open(download.path()) as picture:
        width, height = picture.size
        colours = {colour for _, colour in picture.convert("RGB").getcolors(width * height)}
    # Title, tokens, four layers of cells, and ten experts below them.
    assert picture.format == "PNG" and width >= 760 and height >= 400
    assert any(red > blue + 100 for red, _, blue in colours) and any(blue > red + 100 for red, _, blue in colours)
