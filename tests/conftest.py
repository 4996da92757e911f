# SPDX-License-Identifier: Apache-2.0
"""What all tests share: small models built from config, the real small model, and real data where it is at hand."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)


# With the mark by which scripts/gpu_check.sh finds them.
needs_cuda = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])

# Real data sets are no part of the repository.
NO_DATA = "needs real data: set SLIM_TEST_DATA to a folder that holds what CONTRIBUTING.md lists"
STORIES = "lm-stories260K/hf"

# Where most of the time goes. Several workers begin with these, so that none of them is left for the end.
SLOW = (
    "tests/ui/",
    "tests/training/test_cli.py",
    "tests/training/test_closing.py",
    "tests/inference/test_untrusted.py",
    "tests/demo/test_build.py",
    "tests/method/test_data_parallel.py",
    "tests/webui/test_zero_gpu.py",
    "tests/webui/http/",
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The models are too small for a second thread to pay.
torch.set_num_threads(1)


SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def tiny_llama(**changes) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**(SIZES | changes)))


def tiny_qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES))


def tiny_gemma3() -> PreTrainedModel:
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=8))


def tiny_gpt2() -> PreTrainedModel:
    # Its own dropout would hide what an adapter does in training mode.
    off = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64, **off))


TINY: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": tiny_llama,
    "qwen3": tiny_qwen3,
    "gemma3": tiny_gemma3,
    "gpt2": tiny_gpt2,
}


def build(family: str, seed: int = 0) -> PreTrainedModel:
    """A small random model of a family, in evaluation mode; the same for the same seed. "stories" is the real one."""
    if family == "stories":
        return AutoModelForCausalLM.from_pretrained(require_stories()).eval()
    torch.manual_seed(seed)
    return TINY[family]().eval()


def real_data(path: str) -> Path:
    """A file or folder of the real data. Tests that ask are marked `real_data`, and skipped where there are none."""
    folder = os.environ.get("SLIM_TEST_DATA")
    if not folder:
        pytest.skip(NO_DATA)
    location = Path(folder) / path
    if not location.exists():
        pytest.fail(f"SLIM_TEST_DATA is {folder}, where {path} is missing; name a folder that holds it, or unset it")
    return location


def require_stories() -> Path:
    """The folder of the real small model."""
    return real_data(STORIES)


def pytest_configure(config: pytest.Config) -> None:
    # By itself, xdist begins with the files that have the most tests, and the slow ones have few.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(SLOW))
    for item in items:
        # Whoever builds the family "stories" or takes its tokenizer needs it; the others say so themselves.
        callspec = getattr(item, "callspec", None)
        if "stories_tokenizer" in item.fixturenames or (callspec and callspec.params.get("family") == "stories"):
            item.add_marker("real_data")
        if item.get_closest_marker("real_data") and not os.environ.get("SLIM_TEST_DATA"):
            item.add_marker(pytest.mark.skip(reason=NO_DATA))


def pytest_collection_finish() -> None:
    # Half a million objects of torch, transformers and Gradio are there to stay. Whatever closes a model collects
    # garbage, and would look at each of them every time.
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def stories_tokenizer():
    return AutoTokenizer.from_pretrained(require_stories())


@pytest.fixture
def ids() -> torch.Tensor:
    """(3, 12) token ids, valid for every small model and the real one."""
    return torch.randint(3, 99, (3, 12), generator=torch.Generator().manual_seed(1))
