# SPDX-License-Identifier: Apache-2.0
"""Names in a model card stand for themselves, whatever is in them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from slim_core.training.card import in_markdown, in_python, write_model_card
from slim_core.training.report import TrainingRecord


# By name, what stands in the card.
NAMES = {
    "pairs.jsonl": "pairs.jsonl",
    "my_data-2.jsonl": "my_data-2.jsonl",
    "org/Name-1.5": "org/Name-1.5",
    "two words.csv": "two words.csv",
    "日本é.jsonl": "日本é.jsonl",
    "a`b": "``a`b``",
    "`": "`` ` ``",
    "a``": "``` a`` ```",
    "a|b": "`a|b`",
    "[a](http://b)": "`[a](http://b)`",
    "a[b]": "`a[b]`",
    "![x](y)": "`![x](y)`",
    "<script>alert(1)</script>": "`<script>alert(1)</script>`",
    "<b>": "`<b>`",
    "&amp;": "`&amp;`",
    "*a*": "`*a*`",
    "_a_": "`_a_`",
    "~~a~~": "`~~a~~`",
    ":train:": "`:train:`",
    "@someone": "`@someone`",
    "#1": "`#1`",
    "$x$": "`$x$`",
    "a\\b": "`a\\b`",
    "a\nb": "`a\\nb`",
    "a\n\n# b": "`a\\n\\n# b`",
    "a\u202eb": "`a\\u202eb`",
    "a\udcff": "`a\\udcff`",
    " a ": "`  a  `",
    "www.a.b": "`www.a.b`",
    "http://a": "`http://a`",
    "---": "---",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_reads_in_markdown_as_it_is(name):
    assert in_markdown(name) == NAMES[name]
    html = MarkdownIt("gfm-like", {"linkify": False}).render(f"# x {in_markdown(name)}, y")
    assert html.count("<h1>") == 1 and not re.search(r"<(?!/?(h1|code)>)", html)


@pytest.mark.parametrize("name", [*NAMES, 'a"b', "a'b", "```", '"); import os #'])
def test_a_name_in_python_is_one_string_on_one_line(name):
    assert ast.literal_eval(in_python(name)) == name
    assert "\n" not in in_python(name)
    in_python(name).encode()


@pytest.mark.parametrize("name", ["a`|[<b>", "a\n---\nb: c", ":train:", 'x"y', "plain"])
@pytest.mark.parametrize("local", [True, False])
def test_a_card_has_one_title_and_the_hub_reads_its_top(name, local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if local:
        Path(name).mkdir()
    data = {"sources": [{"name": name}, {"name": "b.jsonl"}], "train": {"examples": 3}}
    arguments = {"base": name, "batch_size": 4, "learning_rate": 0.01, "seed": 42}
    write_model_card(tmp_path, TrainingRecord("lora", arguments, data, status="interrupted"))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == (None if local else name) and card.data.library_name == "peft"
    lines = card.content.partition("\n---\n")[2].splitlines()
    assert [line for line in lines if line.startswith("#")] == [f"# {in_markdown(name)}, fine-tuned with LoRA"]
    assert f"trained on {in_markdown(name)}, b.jsonl (3 examples" in card.content
    assert f"from_pretrained({in_python(name)})" in card.content
    assert "Training was interrupted" in card.content


@pytest.mark.parametrize(
    ("method", "fields", "gated"),
    [("slim", {}, True), ("slim", {"yield_mode": "paper"}, False), ("lora", {}, False)],
)
def test_a_gate_is_explained_where_there_is_one(method, fields, gated, tmp_path):
    data = {"sources": [{"name": "a.jsonl"}], "train": {"examples": 3}}
    arguments = {"base": "b", "batch_size": 4, "learning_rate": 0.01, "seed": 42, "slim": fields}
    write_model_card(tmp_path, TrainingRecord(method, arguments, data))
    assert ("set_gate(model, strength=0)" in (tmp_path / "README.md").read_text(encoding="utf-8")) == gated
