# SPDX-License-Identifier: Apache-2.0
"""Visitors bring adapters to the demo's real model: good and bad ones, from files, the Hub and a folder."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import torch
from gradio_client import Client
from peft import IA3Config, LoraConfig, get_peft_model
from playwright.sync_api import expect
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from slim_core import SlimConfig
from slim_core.outside.files import CONFIG, WEIGHTS
from slim_core.paths import DEMO
from slim_core.webui.config import Config
from slim_core.webui.launch import open_engine
from slim_core.webui.state import visits
from slim_core.webui.tabs import adapters as tab
from slim_core.webui.wire.forgetting import read_results
from tests.outside.hub_server import Hub, serve
from tests.ui.conftest import Site
from tests.ui.test_forgetting import TITLE, choose, ended, table
from tests.waiting import files_below, until


TARGETS = ["q_proj", "v_proj", "down_proj"]
SECOND, THIRD = "Second column", "Third column"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Adapters for the demo's base, as PEFT itself saves them."""
    if not (DEMO / "base").is_dir():
        pytest.skip("the demo model is not here: build it with `python -m slim_core demo build`")
    root = tmp_path_factory.mktemp("made")
    base = AutoModelForCausalLM.from_pretrained(DEMO / "base")
    loras = {
        "mine": LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False),
        "theirs": LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
        "idle": LoraConfig(r=2, target_modules=["q_proj"]),
        "other kind": IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
        "routed": SlimConfig(
            r=2, num_experts=3, num_identity=1, num_clusters=2, target_modules=TARGETS, init_weights=False
        ),
    }
    torch.manual_seed(0)
    for name, config in loras.items():
        config.task_type = "CAUSAL_LM"
        model = get_peft_model(base, config)
        if name == "routed":
            model.train()(torch.randint(3, base.config.vocab_size, (4, 10)))
        else:
            with torch.no_grad():
                for key, weight in model.named_parameters():
                    if "lora_B" in key:  # as large as after a training, so that there still are words
                        weight.mul_(0.05)
        model.save_pretrained(root / name)
        model.unload()
    shutil.copytree(root / "mine", root / "not finite")
    spoil(root / "not finite", lambda key, tensor: tensor * float("nan"))
    shutil.copytree(root / "mine", root / "other base")
    spoil(root / "other base", lambda key, tensor: tensor[:, :-1].contiguous() if "lora_A" in key else tensor)
    return root


def spoil(folder, change):
    tensors = {key: change(key, tensor) for key, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)


@pytest.fixture(scope="module")
def demo(made, tmp_path_factory):
    """The app on the demo, its private files in a folder of the test's."""
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("private"))
    engine = open_engine(Config(device="cpu"), DEMO)
    site = Site(engine, read_results(DEMO / "results.json"), max_upload=5_000_000, adapters=str(made))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visits, "PATIENCE", 0.2)
        yield site
    site.close()
    tempfile.tempdir = before


@pytest.fixture
def open_visit(visit, demo):
    def open_page(**options):
        v = visit(url=demo.url, query={"max_new_tokens": 12}, **options)
        v.tab("Adapters")
        return v

    return open_page


def files(folder):
    return [folder / WEIGHTS, folder / CONFIG]


def choose_column(v, title):
    v.page.get_by_role("radio", name=title).check()


def upload(v, paths, name=""):
    v.page.locator("#slim-own-name textarea").fill(name)
    v.page.locator("#slim-own-files input[type=file]").set_input_files(paths)
    for path in paths:
        expect(v.page.locator("#slim-own-files")).to_contain_text(path.stem)
    v.button("Check and use these files").click()


def check(v, name):
    return v.page.locator(".slim-checks li").filter(
        has=v.page.locator(".slim-check-name").get_by_text(name, exact=True)
    )


def expect_ready(v):
    expect(check(v, "Ready")).to_have_attribute("data-state", "passed", timeout=60_000)


def expect_failed(v, name, sentence):
    expect(check(v, name)).to_have_attribute("data-state", "failed", timeout=60_000)
    expect(check(v, name)).to_contain_text(sentence)


def heads(v):
    return v.page.locator("#slim-transcript .slim-head h2")


def shelf(v, title):
    return v.page.get_by_role("region", name=title, exact=True)


def cached(demo):
    """What Gradio keeps of uploads."""
    return [path for path in files_below(demo.demo.folder.path) if path.name in (CONFIG, WEIGHTS)]


def test_an_upload_answers_in_its_column_and_goes_again(open_visit, demo, made):
    v = open_visit()
    v.tab("Compare")
    v.ask("What is the capital of France?")
    before = v.text("base").inner_text()
    # From the column's head to the tab, which then knows the column.
    v.page.get_by_role("button", name="Change the adapter of SLIM").click()
    expect(v.page.get_by_role("radio", name=THIRD)).to_be_checked()
    upload(v, files(made / "mine"), "Mine & <b>only</b> mine")
    expect_ready(v)
    for name in ("Readable", "Format", "Size", "Fits this base", "Weights finite", "Changes something"):
        expect(check(v, name)).to_have_attribute("data-state", "passed")
    expect(shelf(v, THIRD)).to_contain_text("Mine & <b>only</b> mine")
    expect(v.status).to_contain_text("Ready: LoRA, rank 4.")
    until(lambda: not [path for path in cached(demo) if path.name == CONFIG])
    v.button("Go and compare").click()
    expect(heads(v)).to_have_text(["Base", "LoRA", "Mine & <b>only</b> mine"])
    # The answers of before stay with who gave them.
    expect(v.answer("slim").locator(".slim-name")).to_have_text("SLIM")
    v.button("New conversation").click()
    expect(v.page.locator(".slim-turn")).to_have_count(0)
    v.ask("What is the capital of France?")
    assert v.text("base").inner_text() == before
    expect(v.answer("slim").locator(".slim-name")).to_have_text("Mine & <b>only</b> mine")
    # A plain LoRA has nothing to route.
    expect(v.answer("slim").locator(".slim-summary")).not_to_contain_text("past LoRA")
    v.tab("Routing")
    v.page.locator("#slim-who").select_option("slim")
    expect(v.page.locator("#slim-who")).to_contain_text("Mine & <b>only</b> mine")
    v.tab("Drift")
    expect(v.page.locator(".slim-sentence").first).to_contain_text("Mine & <b>only</b> mine finds it")
    v.tab("Forgetting")
    expect(v.page.locator(".slim-missing")).to_have_text("No scores are stored for “Mine & <b>only</b> mine”.")
    expect(v.page.locator('.slim-score[data-kind="slim"]')).to_have_count(0)
    # It can be measured here.
    v.page.get_by_text(TITLE).click()
    choose(v, 1)
    v.button("Start the evaluation").click()
    ended(v)
    assert table(v)[0][1:] == ["Base", "LoRA", "Mine & <b>only</b> mine"]
    v.tab("Compare")
    with v.page.expect_download() as download:
        v.button("Export JSON").click()
    data = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert data["variants"][2]["label"] == "Mine & <b>only</b> mine"
    assert data["turns"][0]["answers"]["slim"]["variant"]["kind"] == "lora"
    v.tab("Adapters")
    v.button("Remove Mine & <b>only</b> mine").click()
    expect(shelf(v, THIRD)).to_contain_text("SLIM")
    v.tab("Compare")
    expect(heads(v)).to_have_text(["Base", "LoRA", "SLIM"])
    until(lambda: len(demo.engine.variants) == 3 and not cached(demo))
    v.tab("Forgetting")
    expect(v.page.locator('.slim-score[data-kind="slim"]').first).to_be_attached()


def test_an_upload_is_still_there_when_its_page_is_loaded_again(open_visit, demo, made, monkeypatch):
    monkeypatch.setattr(visits, "PATIENCE", 600.0)
    v, other = open_visit(), open_visit()
    upload(v, files(made / "mine"), "Mine")
    expect_ready(v)
    v.page.reload()
    v.ready()
    v.tab("Compare")
    expect(heads(v)).to_have_text(["Base", "Mine", "SLIM"])
    v.ask("What is the capital of France?")
    expect(v.answer("lora").locator(".slim-name")).to_have_text("Mine")
    expect(v.answer("lora").locator(".slim-error")).to_be_hidden()
    v.tab("Adapters")
    expect(shelf(v, SECOND)).to_contain_text("Mine")
    # Nobody else's page has it, not even loaded again.
    other.page.reload()
    other.ready()
    other.tab("Compare")
    expect(heads(other)).to_have_text(["Base", "LoRA", "SLIM"])
    monkeypatch.setattr(visits, "PATIENCE", 0.2)
    v.page.close()
    until(lambda: len(demo.engine.variants) == 3)


def test_bad_files_are_a_sentence_each_and_the_column_stays(open_visit, demo, made, tmp_path):
    v = open_visit()
    upload(v, files(made / "mine"), "Mine")
    expect_ready(v)
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    bad = {
        "Readable": [([made / "mine" / CONFIG], f"There is no {WEIGHTS} among the files")],
        "Format": [(files(made / "other kind"), "peft_type is IA3")],
        "Fits this base": [(files(made / "other base"), "made for another base or rank")],
        "Weights finite": [(files(made / "not finite"), "not finite (NaN or infinity)")],
    }
    bad["Readable"].append(([made / "mine" / CONFIG, tmp_path / "adapter_model.bin"], "can run code, so it is never"))
    for name, cases in bad.items():
        for paths, sentence in cases:
            # Gradio keeps equal files as one: those of the check before go first, or they would take these along.
            until(lambda: not [path for path in cached(demo) if path.name == CONFIG])
            upload(v, paths, "Bad")
            expect_failed(v, name, sentence)
            expect(v.status).to_contain_text(sentence)
            expect(shelf(v, SECOND)).to_contain_text("Mine")
    expect(v.page.locator(".slim-checks")).not_to_contain_text(str(DEMO))
    assert len(demo.engine.variants) == 4
    v.tab("Compare")
    expect(heads(v)).to_have_text(["Base", "Mine", "SLIM"])
    v.ask("What is the capital of France?")
    expect(v.text("base")).to_contain_text("Paris")
    v.tab("Adapters")
    v.button("Check and use these files").click()
    expect(v.warning).to_contain_text("Choose the files first")


def test_a_file_that_is_too_large_is_not_taken(open_visit, demo, tmp_path):
    v = open_visit()
    (tmp_path / WEIGHTS).write_bytes(bytes(6_000_000))
    v.page.locator("#slim-own-files input[type=file]").set_input_files([tmp_path / WEIGHTS])
    expect(v.warning).to_contain_text("size")
    assert len(demo.engine.variants) == 3


def test_one_that_changes_nothing_is_marked(open_visit, made):
    v = open_visit()
    upload(v, files(made / "idle"))
    expect_ready(v)
    expect(check(v, "Changes something")).to_have_attribute("data-state", "warning")
    expect(shelf(v, SECOND).locator(".slim-warning")).to_contain_text("It changes nothing")


def test_two_visitors_with_different_adapters_at_once(open_visit, demo, made):
    first, second = open_visit(), open_visit()
    upload(first, files(made / "mine"), "Zebra")
    choose_column(second, THIRD)
    upload(second, files(made / "theirs"), "Quince")
    expect_ready(first), expect_ready(second)
    for v in (first, second):
        v.tab("Compare")
        v.send("What is the capital of France?")
    for v in (first, second):
        expect(v.page.locator(".slim-turn")).to_have_count(1)
        v.done()
    expect(heads(first)).to_have_text(["Base", "Zebra", "SLIM"])
    expect(heads(second)).to_have_text(["Base", "LoRA", "Quince"])
    assert first.text("base").inner_text() == second.text("base").inner_text()
    assert "Quince" not in first.page.content() and "Zebra" not in second.page.content()
    models = Client(demo.url, verbose=False).predict(api_name="/models")
    assert [variant["label"] for variant in models["variants"]] == ["Base", "LoRA", "SLIM"]
    assert len(demo.engine.variants) == 5
    # Whoever leaves takes theirs along; the other's stays.
    first.page.close()
    until(lambda: len(demo.engine.variants) == 4)
    second.ask("And of Spain?")
    expect(second.answer("slim").locator(".slim-name")).to_have_text("Quince")


def test_files_that_were_never_checked_go_with_their_visitor(open_visit, demo, made):
    v = open_visit()
    v.page.locator("#slim-own-files input[type=file]").set_input_files(files(made / "theirs"))
    until(lambda: len(cached(demo)) >= 2)
    time.sleep(0.5)  # nothing tells when the page has told the server whose they are
    v.page.close()
    until(lambda: not cached(demo))


def test_a_folder_that_the_operator_offers(open_visit):
    v = open_visit()
    v.tab("On this machine")
    v.page.locator("#slim-own-folder input").click()
    v.page.get_by_role("option", name="routed").click()
    choose_column(v, THIRD)
    v.page.locator("#slim-use-folder").click()
    expect_ready(v)
    expect(shelf(v, THIRD)).to_contain_text("rank 2, 3 + 1 experts")
    v.tab("Compare")
    v.ask("What is the capital of France?")
    expect(v.answer("slim").locator(".slim-name")).to_have_text("routed")
    expect(v.answer("slim").locator(".slim-summary")).to_contain_text("past LoRA")


def test_an_adapter_from_the_hub(open_visit, made, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    huggingface_hub.utils.close_session()
    contents = {path.name: path.read_bytes() for path in files(made / "theirs")}
    with serve(Hub(contents)) as hub:
        monkeypatch.setattr(tab, "HubRepository", partial(tab.HubRepository, endpoint=hub.url))
        v = open_visit()
        v.tab("Hugging Face")
        hub.way = "missing"
        v.page.locator("#slim-own-id textarea").fill("me/missing")
        v.page.locator("#slim-use-hub").click()
        expect_failed(v, "Readable", "me/missing does not exist on the Hub or is private")
        hub.way = ""
        v.page.locator("#slim-own-id textarea").fill("../../etc")
        v.page.locator("#slim-use-hub").click()
        expect_failed(v, "Readable", "is not a Hub id")
        v.page.locator("#slim-own-id textarea").fill("https://huggingface.co/me/lora")
        v.page.locator("#slim-use-hub").click()
        expect_ready(v)
        expect(shelf(v, SECOND)).to_contain_text("lora")
        assert not any("authorization" in headers for _, _, headers in hub.asked)
    huggingface_hub.utils.close_session()
