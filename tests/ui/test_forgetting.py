# SPDX-License-Identifier: Apache-2.0
"""The Forgetting tab's evaluation: tasks by their names in words, progress, partial results, tables, plane, files."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.ui.test_access import open_tab, serious
from tests.ui.visit import SECONDS


TITLE = "Measure the variants in your columns, including your own adapters"
TASKS = ("Things and animals (OpenBookQA form)", "Multiple choice")


def open_form(v):
    open_tab(v, "Forgetting")
    v.page.get_by_text(TITLE).click()
    expect(v.button("Start the evaluation")).to_be_visible()


def choose(v, questions, tasks=TASKS):
    boxes = v.page.locator("#slim-evaluation-form").get_by_role("checkbox")
    for box in boxes.all():
        box.uncheck()
    for title in tasks:
        v.page.get_by_label(title, exact=True).check()
    v.page.get_by_label("number input for Questions of each task").fill(str(questions))
    v.page.get_by_label("number input for Questions of each task").blur()
    v.stands_still()


def line(v):
    return v.page.locator("#slim-evaluation-line")


def ended(v):
    expect(line(v)).to_have_attribute("data-running", "false", timeout=60 * SECONDS)
    expect(v.button("Start the evaluation")).to_be_visible()


def table(v):
    """The texts of the table's rows."""
    rows = v.page.locator("#slim-evaluation").get_by_role("region", name="Written answers").locator("tr").all()
    return [row.locator("th, td").all_inner_texts() for row in rows]


def saved(v, name):
    with v.page.expect_download() as download:
        v.button(name).click()
    return download.value.suggested_filename, Path(download.value.path()).read_text(encoding="utf-8")


def test_an_evaluation_from_its_tasks_to_its_files(visit, demo):
    v = visit(url=demo.url)
    open_form(v)
    expect(v.button("Save results as JSON")).to_be_disabled()
    choose(v, 3)
    v.button("Start the evaluation").click()
    ended(v)
    expect(line(v)).to_have_text("All 6 questions were asked.")
    expect(v.status).to_have_text("Evaluation: All 6 questions were asked.")
    head, trained, learned, general, known = table(v)
    assert head == ["Task (questions asked)", "Base", "LoRA", "SLIM"]
    assert (trained, general) == (["What was trained"], ["What should not be forgotten"])
    assert learned[0] == f"{TASKS[0]} (3)" and learned[3] == "100 (44–100)"
    assert known[0] == f"{TASKS[1]} (3)" and known[1] == known[3] != known[2]
    results = v.page.locator("#slim-evaluation")
    expect(results).to_contain_text("In brackets are Wilson's 95 % intervals")
    plane = results.get_by_role("img")
    expect(plane.locator("circle:not(.slim-plane-hit)")).to_have_count(3)
    expect(plane.locator(".slim-plane-base")).to_have_count(2)  # the base's dashed lines
    name, text = saved(v, "Save results as JSON")
    data = json.loads(text)
    assert (name, data["format"]) == ("slim-evaluation.json", "slim-evaluation")
    assert [variant["name"] for variant in data["variants"]] == ["base", "LoRA", "SLIM"]
    assert {task["name"]: task["items"] for task in data["tasks"]} == {"demo_obqa": 3, "demo_choices": 3}
    name, text = saved(v, "Save report as HTML")
    assert name == "slim-evaluation.html" and "<svg" in text and text.rstrip().endswith("</html>")
    expect(v.status).to_have_text("The report is saved as HTML.")
    v.page.get_by_text("Which differences are more than chance").click()
    v.stands_still()
    assert serious(v) == [] and v.width()[0] <= 1280


def test_stop_keeps_partial_results(visit, site):
    site.engine.delay = dict.fromkeys(("base", "lora", "slim"), 0.02)
    v = visit()
    open_form(v)
    choose(v, 100)
    v.button("Start the evaluation").click()
    # Partial results are shown while it goes on.
    expect(v.page.locator(".slim-evaluation-table")).to_have_count(1, timeout=60 * SECONDS)
    expect(line(v)).to_have_attribute("data-running", "true")
    other = visit()
    other.ask("zebras")
    v.button("Stop").click()
    ended(v)
    expect(line(v)).to_contain_text("of 200 questions were asked.")
    assert not table(v)[2][0].endswith("(100)")
    expect(v.button("Save results as JSON")).to_be_enabled()


def send(v, path):
    with v.page.expect_file_chooser() as chooser:
        v.button("Add your own questions").click()
    chooser.value.set_files(path)


def test_questions_of_ones_own(visit, demo, tmp_path):
    path = tmp_path / "my_questions.jsonl"
    answers = {"Name the largest bird.": "ostrich", "On which continent is Peru?": "South America"}
    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in answers.items()]
    path.write_text("\n".join([*lines, '{"prompt": "Name the largest bird."}']), encoding="utf-8")
    v, other = visit(url=demo.url), visit(url=demo.url)
    open_form(v)
    choose(v, 2, TASKS[:1])
    send(v, path)
    expect(v.warning).to_contain_text("my_questions.jsonl, line 3 has neither `answer` nor `rules`")
    v.close_notices()
    own = v.page.locator("#slim-evaluation-own")
    expect(own).to_have_count(0)
    path.write_text("\n".join(lines), encoding="utf-8")
    send(v, path)
    expect(own).to_contain_text("my_questions.jsonl: 2 questions, answers compared as words")
    expect(v.status).to_have_text("my_questions.jsonl: 2 questions, answers compared as words.")
    own.get_by_label("What should not be forgotten").check()
    v.button("Start the evaluation").click()
    ended(v)
    expect(line(v)).to_have_text("All 4 questions were asked.")
    _, _, trained, general, known = table(v)
    assert trained[0] == f"{TASKS[0]} (2)" and general == ["What should not be forgotten"]
    # Far from what was trained, SLIM is the base.
    assert known[:2] == ["my questions (2)", "100 (34–100)"] and known[3] == known[1] != known[2]
    expect(v.page.locator("#slim-evaluation").get_by_role("img").locator(".slim-plane-base")).to_have_count(2)
    _, text = saved(v, "Save results as JSON")
    samples = json.loads(text)["samples"]["my_questions.jsonl"]
    assert [sample["asked"] for sample in samples] == [*answers]
    assert "ostrich" in samples[0]["answers"]["base"]["text"]
    assert serious(v) == [] and v.width()[0] <= 1280
    # Nobody else has them, and they can be removed.
    open_form(other)
    expect(other.page.locator("#slim-evaluation-own")).to_have_count(0)
    expect(other.button("Remove your questions")).to_have_count(0)
    choose(other, 2, ())
    other.button("Start the evaluation").click()
    expect(other.warning).to_contain_text("Choose at least one task first.")
    assert "my_questions" not in other.page.content()
    v.button("Remove your questions").click()
    expect(own).to_have_count(0)
    expect(v.status).to_have_text("Your questions are removed.")


@pytest.mark.nightly
def test_what_cannot_be_evaluated(visit):
    v = visit()
    open_form(v)
    choose(v, 3, ())
    v.button("Start the evaluation").click()
    expect(v.warning).to_contain_text("Choose at least one task first.")
    expect(v.page.locator(".slim-evaluation-table")).to_have_count(0)


def test_every_method_lies_in_one_plane(visit, demo):
    v = visit(url=demo.url)
    open_tab(v, "Forgetting")
    card = v.page.get_by_role("region", name="Every method on the same tasks")
    expect(card.locator("svg")).to_have_attribute("aria-label", re.compile("LoRA, rate 0.003.*SLIM, rate 0.003"))
    card.get_by_text("The points as a table").click()
    rows = [row.locator("th, td").all_inner_texts() for row in card.locator("tbody tr").all()]
    names = [row[0] for row in rows]
    assert names[0] == "Base" and {"LoRA", "SLIM", "OFT", "MixLoRA", "DISeL", "LoRA × 0.5"} <= set(names)
    assert all(row[1].startswith("rate ") for row in rows[1:])
    assert serious(v) == []
