# SPDX-License-Identifier: Apache-2.0
"""A visit with a tiny random model, and the app as its environment starts it."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect

from slim_core.demo.chat import train_tokenizer
from slim_core.paths import DEMO
from slim_core.webui.config import Config
from slim_core.webui.launch import open_engine
from tests.inference.conftest import TEXTS, save_lora, save_slim, tiny_base
from tests.ui.conftest import Site, free_port
from tests.waiting import until


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """base, lora and slim of a tiny model, as the demo's folder has them."""
    root = tmp_path_factory.mktemp("tiny")
    base = tiny_base()
    base.save_pretrained(root / "base")
    train_tokenizer(TEXTS).save_pretrained(root / "base")
    save_lora(root / "lora", base)
    save_slim(root / "slim", base)
    return root


@pytest.fixture(scope="module")
def tiny(folder):
    config = Config(base=str(folder / "base"), lora=str(folder / "lora"), slim=str(folder / "slim"), device="cpu")
    site = Site(open_engine(config, DEMO))
    yield site
    site.close()


def test_a_real_model_answers_with_routing_and_drift(visit, tiny):
    v = visit(url=tiny.url, query={"max_new_tokens": 24})
    v.ask("What is the capital of Peru?")
    v.ask("And the sea?")
    expect(v.answer("slim").locator(".slim-summary")).to_contain_text("past LoRA")
    expect(v.answer("lora").locator(".slim-summary")).to_contain_text("likely")
    v.tab("Routing")
    v.page.locator("#slim-routing .slim-strip [role=option]").nth(3).click()
    rows = v.page.get_by_role("region", name="Experts of every Linear").locator("tbody tr")
    expect(rows).to_have_count(14)
    v.tab("Drift")
    expect(v.page.locator(".slim-sentence").first).to_contain_text("finds the base’s answer")
    v.tab("Forgetting")
    expect(v.page.locator("#slim-no-results")).to_contain_text("no stored results")


def test_the_app_starts_from_its_environment(folder):
    port = free_port()
    names = {f"SLIM_{name.upper()}": str(folder / name) for name in ("base", "lora", "slim")}
    environment = os.environ | names | {"SLIM_DEVICE": "cpu", "SLIM_PORT": str(port), "OMP_NUM_THREADS": "1"}
    log = folder / "serve.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    # A proxy that the environment names knows nothing of this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:

        def page() -> str:
            assert server.poll() is None, log.read_text()
            try:
                return opener.open(f"http://127.0.0.1:{port}/config", timeout=5).read().decode()
            except OSError:
                return ""

        assert "SLIM Compare" in until(page, 90), log.read_text()
    finally:
        server.kill()
        server.wait()
