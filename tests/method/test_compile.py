# SPDX-License-Identifier: Apache-2.0
"""torch.compile takes the forward in evaluation mode as one graph, compiles it once, and changes no answer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch._dynamo.utils import counters
from transformers import PreTrainedModel, StaticCache

from slim_core import SlimConfig, slice_factors
from tests.conftest import tiny_llama


VARIANTS = {
    "paper": {"yield_mode": "paper"},
    "no merging": {"merge": "none"},
    "calibrated": {"yield_mode": "calibrated", "yield_quantile": 0.5},
    "block router": {"router_scope": "block", "target_modules": "all-linear"},
    "hidden router, max": {"router_hidden": 5, "distance": "max"},
    "tokens": {"distance_scope": "token"},
    "turns": {"turn_opening": [7, 8], "context_warmup": 1},
}
# Two that read the same tensor, and one of other sizes: each Linear takes a compiler a third of a second.
FEW = ["q_proj", "v_proj", "down_proj"]
SIZES = {"r": 2, "num_experts": 3, "num_identity": 1, "num_clusters": 4, "init_weights": False, "mask_rate": 0.4}
SIZES |= {"target_modules": FEW}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    """Nothing compiled before; whatever is compiled twice is an error."""
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        yield
    torch._dynamo.reset()


def base() -> PreTrainedModel:
    torch.manual_seed(0)
    return tiny_llama(num_hidden_layers=1).eval()


def trained(**changes) -> PeftModel:
    """A small model whose clusters have seen data, in evaluation mode."""
    model = get_peft_model(base(), SlimConfig(**(SIZES | {"yield_strength": 0.1} | changes))).train()
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        model(input_ids=torch.randint(3, 99, (4, 16), generator=generator))
    model.eval()
    # The first forward afterwards still moves the clusters; the ones to come only read them.
    model(input_ids=torch.arange(3, 9)[None])
    return model


def batches(count: int = 3) -> Iterator[dict[str, torch.Tensor]]:
    """Same shapes, other contents, other padding."""
    generator = torch.Generator().manual_seed(4)
    for padded in range(count):
        mask = torch.ones(2, 8, dtype=torch.long)
        mask[0, :padded] = 0
        yield {"input_ids": torch.randint(3, 99, (2, 8), generator=generator), "attention_mask": mask}


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_forward_is_one_graph_and_compiled_once(variant):
    model = trained(**VARIANTS[variant])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for batch in batches():
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)
    assert graphs() == 1


def test_sliced_factors_are_compiled_too():
    model = trained()
    expected = [model(**batch).logits for batch in batches()]
    slice_factors(model, "default")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for batch, logits in zip(batches(), expected, strict=True):
        torch.testing.assert_close(compiled(**batch).logits, logits)
    assert graphs() == 1


@pytest.mark.parametrize("variant", ["paper", pytest.param("block router", marks=pytest.mark.nightly), "turns"])
def test_decoding_with_a_static_cache_is_compiled_once(variant):
    model = trained(**VARIANTS[variant])
    ids = next(batches())["input_ids"]
    expected = model(input_ids=ids).logits
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    cache = StaticCache(model.config, max_cache_len=16)
    model(input_ids=ids[:, :3], past_key_values=cache)
    for t in range(3, 8):
        step = compiled(
            input_ids=ids[:, t : t + 1], past_key_values=cache, position_ids=torch.full((2, 1), t), use_cache=True
        )
        torch.testing.assert_close(step.logits[:, 0], expected[:, t], atol=1e-5, rtol=1e-4)
    assert graphs() == 1


ROWS = {
    "neighbours": ["default", "default", "__base__", "other"],
    # Rows of one adapter that are not neighbours are gathered with an index.
    "scattered": ["default", "other", "__base__", "default"],
}


@pytest.mark.parametrize("way", ["through PEFT", pytest.param("inside PEFT's hooks", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("rows", ROWS)
def test_rows_with_different_adapters_are_one_graph(rows, way):
    names = ROWS[rows]
    model = trained()
    model.add_adapter("other", SlimConfig(**(SIZES | {"num_experts": 2, "merge": "none", "yield_strength": 0.1})))
    model.eval()
    if way == "through PEFT":
        compiled, hooks, extra = model, nullcontext, {"adapter_names": names}
    else:
        compiled, extra = model.base_model.model, {}

        def hooks():
            return model.base_model._enable_peft_forward_hooks(adapter_names=names)

    compiled = torch.compile(compiled, fullgraph=True, backend="eager")
    for batch in batches():
        batch = {key: torch.cat([value, value + (key == "input_ids")]) for key, value in batch.items()}
        expected = model(**batch, adapter_names=names).logits
        with hooks():
            logits = compiled(**batch, **extra).logits
        torch.testing.assert_close(logits, expected)
        with model.disable_adapter():
            plain = model(**batch).logits
        assert torch.equal(logits[2], plain[2])
        assert not torch.allclose(logits[0], plain[0], atol=1e-3)
    # Compiled from inside, the hook that reads the arguments is a graph of its own.
    assert graphs() == (1 if way == "through PEFT" else 2)


def test_without_adapters_the_compiled_answer_is_the_bases():
    expected = [base()(**batch).logits for batch in batches()]
    model = trained()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with model.disable_adapter():
        for batch, logits in zip(batches(), expected, strict=True):
            assert torch.equal(compiled(**batch).logits, logits)
    assert graphs() == 1


COMPILER = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")


# The inductor's C++ compiler takes twenty seconds; what it is given is the same as that of "aot_eager".
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[COMPILER, pytest.mark.nightly])])
def test_lowered_graphs_give_the_same_answers(backend):
    model = trained(target_modules=["v_proj"])
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for batch in batches():
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-4)
    assert graphs() == 1


def test_gradients_that_are_switched_on_do_not_break_the_graph():
    model = trained()
    with torch.enable_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        for batch in batches():
            torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)
