# SPDX-License-Identifier: Apache-2.0
"""The plugin of `deploy/vllm` in vLLM's server: rows of the base, of a LoRA and of SLIM in one batch.

Prompts are read in parts, and there is room for the keys and values of 640 tokens.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from slim_core.demo.measure import TASKS, questions
from slim_core.inference import Message, Row, Sampling, load_engine
from slim_core.paths import DEMO
from slim_core.peft_tools import export_vllm
from tests.serving.vllm_server import PYTHON, needs_vllm, serving, token_ids


pytestmark = needs_vllm
PLUGIN = Path(__file__).resolve().parents[2] / "deploy" / "vllm"
LONGEST, AT_ONCE = 48, 16
MODELS = ("base", "lora", "slim")
Messages = tuple[Message, ...]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Path:
    """A folder that Python takes for one where the plugin was installed."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copy(PLUGIN / "slim_vllm.py", folder)
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    installed = folder / f"slim_vllm-{project['version']}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: slim-vllm\nVersion: {project['version']}\n")
    group, points = next(iter(project["entry-points"].items()))
    lines = [f"{name} = {value}" for name, value in points.items()]
    (installed / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    return folder


@pytest.fixture(scope="module")
def upstream(plugin, tmp_path_factory) -> Iterator[str]:
    """Where the API is."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(DEMO / "base"), DEMO / "slim")
    slim = tmp_path_factory.mktemp("slim")
    rank = export_vllm(model, "default", slim)
    options = ["--max-lora-rank", str(rank), "--no-enable-prefix-caching", "--max-num-batched-tokens", "48"]
    options += ["--max-num-seqs", str(AT_ONCE), "--block-size", "32", "--num-gpu-blocks-override", "20"]
    log = tmp_path_factory.mktemp("vllm") / "log"
    with serving({"lora": DEMO / "lora", "slim": slim}, log, *options, path=plugin) as url:
        yield url


def conversations(count: int) -> list[Messages]:
    """Of one to four turns, from all tasks."""
    rng = random.Random(1)
    asked = [question for task in TASKS for question in questions(task, "test", 20)]
    chosen = []
    for _ in range(count):
        *earlier, last = rng.sample(asked, rng.randint(1, 4))
        turns = [Message(*pair) for e in earlier for pair in (("user", e.prompt), ("assistant", e.answer))]
        chosen.append((*turns, Message("user", last.prompt)))
    return chosen


def ask(url: str, row: Row, longest: int = LONGEST, **options: bool) -> tuple[int, ...]:
    """The server's greedy answer."""
    messages = [{"role": message.role, "content": message.content} for message in row.messages]
    return token_ids(url, row.variant, messages, longest, **options)


def put_off(url: str) -> float:
    """How often the server took a running request's memory, to read it again later."""
    metrics = httpx.get(url.removesuffix("v1") + "metrics").text
    return sum(float(count) for count in re.findall(r"^vllm:num_preemptions_total\S* (\S+)$", metrics, re.M))


def test_its_tokens_are_the_engine_s(upstream):
    engine = load_engine(DEMO / "base", lora=DEMO / "lora", slim=DEMO / "slim", device="cpu")
    rows = [Row(model, messages) for messages in conversations(10) for model in MODELS]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = list(threads.map(lambda row: ask(upstream, row), rows))
    expected = [list(engine.answer([row], Sampling(max_new_tokens=LONGEST)))[-1].rows[0].token_ids for row in rows]
    assert answers == expected
    base, lora, slim = (expected[number :: len(MODELS)] for number in range(len(MODELS)))
    assert base != slim != lora


def test_a_request_that_is_read_again_gets_the_same_tokens(upstream):
    rows = [Row("slim", messages) for messages in conversations(6)]
    alone = [ask(upstream, row, 120, ignore_eos=True) for row in rows]
    before = put_off(upstream)
    with ThreadPoolExecutor(len(rows)) as threads:
        together = list(threads.map(lambda row: ask(upstream, row, 120, ignore_eos=True), rows))
    assert together == alone
    assert put_off(upstream) > before


def test_a_server_with_prefix_caching_does_not_start(plugin, tmp_path):
    with pytest.raises(AssertionError), serving({"lora": DEMO / "lora"}, tmp_path / "log", path=plugin):
        pass
    log = (tmp_path / "log").read_text()
    assert "needs --no-enable-prefix-caching. To serve LoRAs otherwise, uninstall it." in log


REFUSALS = """
import torch, vllm, slim_vllm
from types import SimpleNamespace as Config

def refusal(call, *args):
    try:
        call(*args)
    except RuntimeError as error:
        print(error)
    else:
        print("fine")

def check(eager=True, speculative=None, workers=1, dtype=torch.float32):
    config = Config(
        cache_config=Config(enable_prefix_caching=False),
        model_config=Config(enforce_eager=eager),
        parallel_config=Config(world_size=workers),
        speculative_config=speculative,
    )
    refusal(slim_vllm.check, config, Config(lora_dtype=dtype))

check()
check(speculative=Config())
check(eager=False, dtype=torch.bfloat16)
check(workers=2)
vllm.__version__ = "0.33.0"
refusal(slim_vllm.register)
"""


def test_settings_that_it_does_not_know_are_refused(plugin):
    environment = os.environ | {"PYTHONPATH": str(plugin)}
    result = subprocess.run([str(PYTHON), "-c", REFUSALS], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-5:] == [
        "fine",
        "The plugin slim-vllm needs no speculative decoding. To serve LoRAs otherwise, uninstall it.",
        "The plugin slim-vllm needs --enforce-eager, --dtype float32. To serve LoRAs otherwise, uninstall it.",
        "The plugin slim-vllm needs one worker. To serve LoRAs otherwise, uninstall it.",
        "The plugin slim-vllm is for vLLM 0.32.0, and this is 0.33.0: install that or remove it.",
    ]
