# SPDX-License-Identifier: Apache-2.0
"""The Model tab: what is loaded, another base for everyone, and back; real models."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect
from transformers import LlamaConfig

from slim_core.demo.chat import train_tokenizer
from slim_core.webui.config import Config
from slim_core.webui.launch import open_backend
from tests.inference.conftest import TEXTS, save_lora, save_slim, tiny_base
from tests.ui.conftest import Site
from tests.ui.visit import SECONDS


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A demo, a second base of another shape, and a folder whose config promises far more than fits anywhere."""
    root = tmp_path_factory.mktemp("models")
    for name, changes in (("demo/base", {}), ("second", {"hidden_size": 48, "num_hidden_layers": 3})):
        base = tiny_base(**changes)
        base.save_pretrained(root / name)
        train_tokenizer(TEXTS).save_pretrained(root / name)
        if name == "demo/base":
            save_lora(root / "demo" / "lora", base)
            save_slim(root / "demo" / "slim", base)
    (root / "huge").mkdir()
    config = LlamaConfig(hidden_size=65_536, num_hidden_layers=20, architectures=["LlamaForCausalLM"]).to_dict()
    (root / "huge" / "config.json").write_text(json.dumps(config))
    return root


@pytest.fixture
def changing(root):
    config = Config(device="cpu", models=f"{root / 'second'}, {root / 'huge'}")
    site = Site(open_backend(config, root / "demo"))
    yield site
    site.close()


def choose(v, name: str) -> None:
    box = v.page.locator("#slim-base input")
    box.click()
    v.page.get_by_role("option", name=name, exact=True).click()
    expect(box).to_have_value(name)


def banner(v):
    return v.page.locator(".slim-banner")


def columns(v, *names: str) -> None:
    expect(v.page.locator("#slim-transcript .slim-head")).to_have_count(len(names))
    for name in names:
        expect(v.page.locator(f"#slim-transcript .slim-head[data-column={name}]")).to_have_count(1)


def test_another_base_for_everyone_and_back(visit, changing):
    v, other = (visit(url=changing.url, query={"max_new_tokens": 8}) for _ in range(2))
    other.ask("What is the capital of Peru?")
    v.tab("Model")
    expect(v.page.locator("#slim-loaded")).to_contain_text("SLIM demo")
    expect(v.page.locator("#slim-loaded")).to_contain_text("Free")
    choose(v, "second")
    v.button("Estimate").click()
    expect(v.page.locator("#slim-need")).to_contain_text("second needs about")
    expect(v.page.locator("#slim-need")).to_contain_text("It fits.")
    v.button("Load").click()
    expect(banner(v)).to_contain_text("The base is second now", timeout=60 * SECONDS)
    expect(v.page.locator("#slim-loaded")).to_contain_text("3 layers")
    expect(v.page.locator("#slim-header .slim-model")).to_contain_text("second · float32")
    # The other visitor is told, and what they had was with another base.
    expect(banner(other)).to_contain_text("conversations and adapters were cleared")
    columns(other, "base")
    expect(other.page.locator(".slim-turn")).to_have_count(0)
    other.ask("And the sea?")
    expect(other.text("base")).not_to_be_empty()
    other.tab("Forgetting")
    expect(other.page.locator("#slim-no-results")).to_contain_text("no stored results")
    # Whoever comes now sees what is loaded now.
    late = visit(url=changing.url)
    columns(late, "base")
    choose(v, "SLIM demo")
    v.button("Load").click()
    expect(banner(v)).to_contain_text("The base is SLIM demo now", timeout=60 * SECONDS)
    for page in (v, other, late):
        page.tab("Compare")
        columns(page, "base", "lora", "slim")
    v.ask("What is the capital of Peru?")
    expect(v.answer("slim").locator(".slim-summary")).to_contain_text("past LoRA")


def test_what_does_not_fit_is_refused_with_numbers_and_another_precision_is_loaded(visit, changing):
    v = visit(url=changing.url, query={"max_new_tokens": 6})
    v.tab("Model")
    choose(v, "huge")
    v.button("Estimate").click()
    expect(v.page.locator("#slim-need")).to_contain_text("huge needs about")
    expect(v.page.locator("#slim-need")).to_contain_text("cpu has")
    v.button("Load").click()
    expect(banner(v)).to_contain_text("huge needs about", timeout=60 * SECONDS)
    expect(banner(v)).to_have_attribute("data-state", "failed")
    v.tab("Compare")
    columns(v, "base", "lora", "slim")
    v.ask("What is the capital of Peru?")
    v.tab("Model")
    choose(v, "SLIM demo")
    v.page.locator("#slim-precision").get_by_label("4-bit").check()
    v.button("Load").click()
    expect(v.page.locator("#slim-header .slim-model")).to_contain_text("4-bit nf4", timeout=60 * SECONDS)
    expect(v.page.locator("#slim-loaded")).to_contain_text("4-bit nf4")
    v.tab("Compare")
    columns(v, "base", "lora", "slim")
    v.ask("What is the capital of Peru?")


def test_where_nothing_may_be_changed_the_reason_is_there(visit):
    v = visit()
    v.tab("Model")
    expect(v.page.locator("#slim-fixed")).to_contain_text("SLIM_MODELS")
    expect(v.page.locator("#slim-base, #slim-precision")).to_have_count(0)
    expect(v.button("Load")).to_have_count(0)
