# SPDX-License-Identifier: Apache-2.0
"""The Many prompts tab: a list or a file, a table that fills row by row, stop, and the table as a file."""

import csv
import io
import json
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.ui.conftest import Site
from tests.ui.scripted import FAIL, FOREIGN, ScriptedEngine
from tests.ui.test_access import open_tab
from tests.ui.visit import SECONDS
from tests.waiting import until


# In the form in which the demo's adapters were trained.
TASK = (
    "Please answer the following question with true or false, question: is Peru part of South America? Answer format: "
    "true/false"
)
ROWS = """() => [...document.querySelectorAll('#slim-many-table [role=row]')]
    .map((row) => [...row.querySelectorAll('[role=gridcell]')].map((cell) => cell.innerText.trim()))
    .filter((row) => row.some((text) => text))"""


def rows(v):
    """Of the table, each a list of texts."""
    return v.page.evaluate(ROWS)


def table(v, count):
    """The rows, once there are at least so many."""
    v.page.wait_for_function(f"(count) => ({ROWS})().length >= count", arg=count, timeout=60 * SECONDS)
    return rows(v)


def line(v):
    return v.page.locator("#slim-many-line")


def send(v, text):
    v.page.locator("#slim-many-box textarea").fill(text)
    v.button("Run").click()


def ended(v):
    expect(line(v)).to_contain_text("answered", timeout=60 * SECONDS)
    expect(line(v)).to_have_attribute("data-running", "false", timeout=120 * SECONDS)
    expect(v.button("Run")).to_be_visible()


def take(v, path):
    with v.page.expect_file_chooser() as chooser:
        v.button("Use a file").click()
    chooser.value.set_files(path)


def saved(v, name):
    with v.page.expect_download() as download:
        v.button(name).click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


@pytest.fixture
def many(visit):
    def open_page(**options):
        v = visit(**options)
        open_tab(v, "Many prompts")
        return v

    return open_page


def test_a_table_that_fills_row_by_row_and_is_exported(many, site):
    site.engine.delay = dict.fromkeys(("base", "lora", "slim"), 0.2)
    v = many()
    expect(v.button("Export table as CSV")).to_be_disabled()
    send(v, f"=1+1 {FOREIGN}\n\n<b>two</b>\nthree")
    expect(line(v)).to_contain_text("of 3 answered; number")
    expect(v.button("Stop")).to_be_visible()
    assert len(table(v, 1)) < 3
    site.engine.delay = {}
    ended(v)
    first, second, _ = table(v, 3)
    assert first[:2] == ["1", f"=1+1 {FOREIGN}"] and second[1] == "<b>two</b>"
    assert first[2].startswith("Base says: turn1 seed0 =1+1 foreign word")
    assert first[4] == "10⁶ times less likely; 0.010 nats per token"
    assert first[7:] == ["100%", "Unlike the training data"]
    expect(v.status).to_have_text("Many prompts: 3 of 3 answered.")
    name, content = saved(v, "Export table as CSV")
    lines = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    assert name == "slim-prompts.csv" and content.startswith(b"\xef\xbb\xbf")
    assert [row["prompt"] for row in lines] == [f"'=1+1 {FOREIGN}", "<b>two</b>", "three"]
    assert lines[0]["slim_verdict"] == "unlike" and lines[0]["lora_log_ratio"] == "14.0"
    name, content = saved(v, "Export table as JSON")
    data = json.loads(content)
    assert name == "slim-prompts.json" and data["base"] == "scripted" and len(data["results"]) == 3
    assert data["results"][0]["answers"]["base"]["text"] == first[2]
    expect(v.status).to_have_text("The table is saved as JSON.")


@pytest.mark.nightly
def test_one_that_fails_has_its_sentence(many):
    v = many()
    send(v, f"one\n{FAIL}\nthree")
    ended(v)
    cells = table(v, 3)
    assert cells[1][2] == "The memory is used up: shorten the conversation." and cells[2][2].startswith("Base says")
    expect(line(v)).to_have_text("3 of 3 answered, 1 of them failed.")


def test_stop_keeps_the_rows(many, site):
    site.engine.delay = dict.fromkeys(("base", "lora", "slim"), 0.03)
    v = many()
    send(v, "\n".join(f"prompt {n}" for n in range(40)))
    table(v, 2)
    v.button("Stop").click()
    ended(v)
    kept = rows(v)
    assert 2 <= len(kept) < 40
    expect(line(v)).to_have_text(f"{len(kept)} of 40 answered.")
    expect(v.button("Export table as CSV")).to_be_enabled()
    # And another list in its place.
    send(v, "Again")
    expect(line(v)).to_have_text("1 of 1 answered.", timeout=60 * SECONDS)
    assert table(v, 1)[0][1] == "Again"


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "text", "prompts"),
    [
        ("p.txt", "One\nTwo\n", ["One", "Two"]),
        ("p.csv", "id,prompt\n1,One\n", ["One"]),
        ("p.json", '["One", {"prompt": "Two"}]', ["One", "Two"]),
        ("p.jsonl", '{"messages": [{"role": "user", "content": "One\\nline"}]}\n', ["One\nline"]),
    ],
)
def test_a_file_in_place_of_the_box(many, tmp_path, name, text, prompts):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    v = many()
    v.page.locator("#slim-many-box textarea").fill("Not me")
    take(v, path)
    count = f"{len(prompts)} prompt{'s' if len(prompts) > 1 else ''}"
    expect(v.page.locator("#slim-many-file")).to_have_text(f"{name}: {count}.")
    expect(v.page.locator("#slim-many-box textarea")).to_be_disabled()
    v.button("Run").click()
    ended(v)
    assert [row[1].split() for row in table(v, len(prompts))] == [prompt.split() for prompt in prompts]
    v.button("Use the box").click()
    expect(v.page.locator("#slim-many-file")).to_be_hidden()
    v.button("Run").click()
    v.page.wait_for_function("document.querySelector('#slim-many-table')?.innerText.includes('Not me')")


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("p.jsonl", '{"prompt": "One"}\n{"prompt": 2}\n', "p.jsonl, line 2: `prompt` must be text, not 2."),
        ("p.csv", "question\nOne\n", "p.csv, line 1: there is no column `prompt`"),
        ("p.txt", "One\nTw\x07o\n", "p.txt, line 2: The prompt has a control character (U+0007) at position 3."),
        ("p.txt", "One\n" * 51, "There are 51 prompts in p.txt; at most 50 can be asked at once."),
        ("p.txt", "", "p.txt"),
    ],
)
def test_a_file_that_cannot_be_asked_is_refused_with_its_place(many, tmp_path, name, text, sentence):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    v = many()
    take(v, path)
    expect(v.warning).to_contain_text(sentence)
    expect(v.page.locator("#slim-many-file")).to_be_hidden()


def test_what_cannot_be_run(many):
    v = many()
    v.button("Run").click()
    expect(v.warning).to_contain_text("Write the prompts first, one per line, or send a file of them.")
    send(v, "One\n" * 51)
    expect(v.warning).to_contain_text("There are 51 prompts in the box; at most 50 can be asked at once.")
    assert rows(v) == []


@pytest.mark.nightly
def test_others_are_answered_between(many, visit, site):
    site.engine.delay = dict.fromkeys(("base", "lora", "slim"), 0.05)
    lister, other = many(), visit()
    send(lister, "\n".join(f"quinces {n}" for n in range(40)))
    table(lister, 1)
    other.ask("zebras")
    expect(other.text("base")).to_contain_text("zebras")
    expect(line(lister)).to_have_attribute("data-running", "true")
    assert "quinces" not in other.page.content() and "zebras" not in lister.page.content()
    lister.button("Stop").click()
    ended(lister)


@pytest.mark.nightly
def test_settings_and_the_gate_of_compare_count(visit):
    v = visit(query={"seed": 7, "strength": 0})
    open_tab(v, "Many prompts")
    send(v, f"{FOREIGN} one")
    ended(v)
    row = table(v, 1)[0]
    assert "seed7" in row[2] and row[8] == "Gate forced open"


def test_a_reload_ends_the_list(many, site):
    site.engine.delay, site.engine.length = dict.fromkeys(("base", "lora", "slim"), 0.05), 2000
    v = many()
    send(v, "one\ntwo")
    expect(line(v)).to_contain_text("0 of 2 answered")
    v.page.reload()
    v.ready()
    until(lambda: site.engine.closed, 60)
    assert (site.engine.runs, site.engine.closed) == (1, 1)


@pytest.mark.nightly
def test_the_base_alone(visit):
    engine = ScriptedEngine()
    engine.variants = engine.variants[:1]
    site = Site(engine, max_prompts=2)
    try:
        v = visit(url=site.url)
        open_tab(v, "Many prompts")
        send(v, "one\ntwo\nthree")
        expect(v.warning).to_contain_text("There are 3 prompts in the box; at most 2 can be asked at once.")
        send(v, "one\ntwo")
        ended(v)
        assert [row[:2] for row in table(v, 2)] == [["1", "one"], ["2", "two"]]
    finally:
        site.close()


def test_the_demo_model(visit, demo):
    v = visit(url=demo.url, query={"max_new_tokens": 16})
    open_tab(v, "Many prompts")
    send(v, f"{TASK}\nName the largest bird.\nOn which continent is Peru?")
    ended(v)
    like, bird, _ = table(v, 3)
    assert like[8] == "Like the training data" and like[3].startswith("the correct answer is")
    assert bird[8] == "Unlike the training data" and bird[5] == bird[2] != bird[3]
    assert bird[6].startswith("exactly as likely; 0.000 nats")
