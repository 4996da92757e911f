# SPDX-License-Identifier: Apache-2.0
"""Adapters of the methods to compare with as columns of the page, on the demo's real model."""

from __future__ import annotations

import re

import pytest
import torch
from peft import get_peft_model
from playwright.sync_api import expect
from transformers import AutoModelForCausalLM

from slim_core.paths import DEMO
from tests.baselines.small import configured, stir
from tests.ui.test_access import open_tab, serious
from tests.ui.test_adapters import SECOND, THIRD, choose_column, expect_ready, files, heads, shelf, upload


DRIFTED = re.compile(r"^finds the base’s answer [\d.⁰-⁹]+ times (less|more) likely$")
COLOURS = "nodes => nodes.map((node) => getComputedStyle(node).borderTopColor)"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """By method, a folder with an adapter for the demo's base, as PEFT saves it."""
    if not (DEMO / "base").is_dir():
        pytest.skip("the demo model is not here: build it with `python -m slim_core demo build`")
    folders = {}
    for method in ("disel", "mola"):
        base = AutoModelForCausalLM.from_pretrained(DEMO / "base")
        torch.manual_seed(0)
        model = get_peft_model(base, configured(method, base))
        stir(model)
        folders[method] = tmp_path_factory.mktemp(method)
        model.save_pretrained(folders[method])
    return folders


def test_they_answer_by_their_names_and_say_what_they_have_for_a_routing(visit, demo, made):
    v = visit(url=demo.url, query={"max_new_tokens": 12})
    v.tab("Adapters")
    for method, title, column in (("disel", "DISeL", SECOND), ("mola", "MoLA", THIRD)):
        choose_column(v, column)
        upload(v, files(made[method]), f"My {method}")
        expect_ready(v)
        expect(v.status).to_contain_text(f"Ready: {title}, rank")
        expect(shelf(v, column).locator(".slim-chip")).to_have_text(f"your {title}")
    v.button("Go and compare").click()
    expect(heads(v)).to_have_text(["Base", "My disel", "My mola"])
    chips = v.page.locator("#slim-transcript .slim-head .slim-chip")
    expect(chips).to_have_text(["base model", "your DISeL adapter", "your MoLA adapter"])
    base, second, third = v.page.locator("#slim-transcript .slim-head").evaluate_all(COLOURS)
    assert base != second == third  # neither LoRA's colour nor SLIM's
    v.ask("What is the capital of France?")
    expect(v.text("base")).to_contain_text("Paris")
    for column in ("lora", "slim"):
        expect(v.answer(column).locator(".slim-error")).to_be_hidden()
        expect(v.text(column)).not_to_be_empty()
        expect(v.answer(column).locator(".slim-summary")).to_have_text(DRIFTED)
    assert serious(v) == []
    open_tab(v, "Routing")
    sentence = v.page.locator("#slim-routing .slim-empty")
    expect(sentence).to_have_text(
        "DISeL has no identity experts, so no token can bypass it: every token goes through it, without a router; a "
        "gate weights each rank."
    )
    expect(v.page.locator("#slim-routing canvas")).to_be_hidden()
    assert serious(v) == []
    # The other has a router, whose weights are shown in the same map with other words and colours.
    v.page.locator("#slim-who").select_option("slim")
    expect(v.page.locator("#slim-routing canvas")).to_be_visible()
    routing = v.page.locator("#slim-routing")
    expect(routing).to_contain_text(
        "MoLA has no identity experts, so no token can bypass it: in each Linear, a router"
    )
    expect(routing.locator(".slim-legend")).to_have_text("several experts alikeone expert alone")
    token = routing.locator(".slim-strip [role=option]").nth(4)
    expect(token).to_have_attribute("aria-label", re.compile(r"token 5, prompt, largest expert (5|6|7|8|9|10)\d%"))
    token.click()
    detail = v.page.locator("#slim-detail")
    expect(detail.get_by_role("columnheader")).to_have_text(
        ["Layer", "Linear", "Largest", "Gate", "Distance", "Up to", "Cluster", "LoRA 1", "LoRA 2", "LoRA 3", "LoRA 4"]
    )
    expect(routing.locator(".slim-use")).not_to_contain_text("Identity")
    assert "identity" not in routing.locator(".slim-routing-body").inner_text().replace("identity experts", "")
    v.stands_still()
    assert serious(v) == [] and v.width()[0] <= 1280
    open_tab(v, "Drift")
    expect(v.page.locator(".slim-sentence").first).to_contain_text("My mola finds it")
    # With SLIM beside it, the sentence says where a routing is to be seen.
    open_tab(v, "Adapters")
    v.button("Remove My mola").click()
    expect(shelf(v, THIRD)).to_contain_text("SLIM")
    open_tab(v, "Compare")
    v.ask("What is the capital of France?")
    open_tab(v, "Routing")
    expect(v.page.locator("#slim-routing canvas").first).to_be_visible()
    v.page.locator("#slim-who").select_option("lora")
    expect(sentence).to_contain_text("a gate weights each rank. Choose SLIM to see a routing.")
