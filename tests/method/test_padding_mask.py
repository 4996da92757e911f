# SPDX-License-Identifier: Apache-2.0
"""Padding never enters the cluster statistics: the adapted model hands its layers the mask, however it is called."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

from slim_core import SlimConfig
from slim_core.method import SlimLayer
from tests.conftest import TINY, build
from tests.method import reference
from tests.method.small import learned, small_base, tiny_t5


LENGTHS = (12, 7, 10)
VALID = sum(LENGTHS)


def config(**changes) -> SlimConfig:
    # B is drawn too, so that each layer's input depends on the layers below it.
    start = {"r": 2, "num_experts": 2, "num_clusters": 4, "init_weights": False, "merge": "none"}
    return SlimConfig(**(start | changes))


def adapt(family: str, **changes) -> PeftModel:
    torch.manual_seed(0)
    base = small_base(family)
    torch.manual_seed(0)
    model = get_peft_model(base, config(**changes))
    return model.train()


def padding(side: str) -> Tensor:
    """(3, 12) attention mask of rows with `LENGTHS` tokens."""
    mask = torch.tensor([[1] * n + [0] * (12 - n) for n in LENGTHS])
    return mask if side == "right" else mask.flip(1)


def pad(ids: Tensor, side: str, filler: int = 0) -> Tensor:
    """(3, 12) the first `LENGTHS` tokens of each row, and `filler`."""
    out = torch.full_like(ids, filler)
    out[padding(side) == 1] = ids[padding("right") == 1]
    return out


def positions(mask: Tensor) -> Tensor:
    """As `generate` counts them."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def layers(model: nn.Module) -> dict[str, SlimLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SlimLayer)}


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """All statistics, the last forward's included: a state dict is complete."""
    return {k: v.clone() for k, v in model.state_dict().items() if any(n in k for n in SlimLayer.statistic_names)}


def counts(model: nn.Module) -> set[int]:
    """Tokens that each layer has counted."""
    return {int(v.sum()) for k, v in statistics(model).items() if "slim_count" in k}


CALLS = {
    "keyword": lambda model, ids, mask: model(input_ids=ids, attention_mask=mask),
    "positional": lambda model, ids, mask: model(ids, mask),
    "embeddings": lambda model, ids, mask: model(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask),
    "float mask": lambda model, ids, mask: model(input_ids=ids, attention_mask=mask.float()),
    "bool mask": lambda model, ids, mask: model(input_ids=ids, attention_mask=mask.bool()),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", [*TINY, "opt"])
def test_each_layer_counts_exactly_the_valid_tokens(family, side, ids):
    model = adapt(family)
    model(input_ids=pad(ids, side), attention_mask=padding(side))
    assert counts(model) == {VALID}


@pytest.mark.parametrize("call", CALLS)
def test_the_mask_is_found_however_the_model_is_called(call, ids):
    model = adapt("llama")
    CALLS[call](model, pad(ids, "left"), padding("left"))
    assert counts(model) == {VALID}


def test_the_mask_is_found_where_adapters_were_only_injected(ids):
    model = inject_adapter_in_model(config(), build("llama")).train()
    model(pad(ids, "left"), padding("left"))
    assert counts(model) == {VALID}


@pytest.mark.parametrize("scope", ["context", "token"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_statistics_are_those_of_the_valid_tokens_alone(family, side, scope, ids):
    model = adapt(family, cluster_momentum=0.5, distance_scope=scope)
    mask = padding(side)
    for _ in range(2):  # the first batch starts the references, the second slides them
        model(input_ids=pad(ids + 1, side), attention_mask=mask)
    statistics(model)
    seen = {}
    for name, layer in layers(model).items():
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].detach().double()}))
    model(input_ids=pad(ids, side), attention_mask=mask)
    # The clusters are still those this forward started from: it is folded in before the next one.
    start = {
        name: {k: v.clone() for k, v in reference.layer_state(layer, "default").items()}
        for name, layer in layers(model).items()
    }
    measured = statistics(model)
    assert start
    for name, state in start.items():
        x, counted = seen[name].view(3, 12, -1), mask.reshape(-1) == 1
        contexts = reference.batch_contexts(x, mask=mask)
        x, mean, count = (part.flatten(0, 1)[counted] for part in (x, *contexts))
        placed = mean if scope == "context" else x
        center, var = reference.slide(state["center"], state["var"], placed, 0.5)
        nearest = torch.cdist(placed, state["center"].double()).argmin(1)
        spread = reference.spread_of(state, model.peft_config["default"])[nearest]
        z = (placed - state["center"][nearest]) / (spread + 1e-6).sqrt()
        distance = z.square().mean(1).sqrt() - 1
        expected = {
            "slim_center": center,
            "slim_var": var,
            "slim_count": (state["count"] + nearest.bincount(minlength=len(center))).double(),
            "slim_reference": reference.slide_references(state["reference"], distance, count, 0.5),
        }
        if scope == "context":
            moved = reference.slide(state["token_mean"], state["token_var"], x, 0.5)
            expected |= dict(zip(("slim_token_mean", "slim_token_var"), moved, strict=True))
        actual = {statistic: measured[f"{name}.{statistic}.default"].double() for statistic in expected}
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3", "opt"])
def test_left_and_right_padding_give_the_same_statistics(family, ids):
    runs = []
    for side in ("left", "right"):
        # First centres from data draw tokens by their place in the batch, so these start at random.
        model = adapt(family, cluster_init="random")
        mask = padding(side)
        for shift in range(2):
            model(input_ids=pad(ids + shift, side), attention_mask=mask, position_ids=positions(mask))
        runs.append(statistics(model))
    assert all(int(v.sum()) == 2 * VALID for k, v in runs[0].items() if "slim_count" in k)
    torch.testing.assert_close(runs[0], runs[1], atol=1e-5, rtol=1e-4)


def test_packed_sequences_teach_what_rows_of_a_batch_teach(ids):
    runs = []
    for packed in (False, True):
        # The inputs of the first block are the tokens by themselves: nothing attends to the sequence before.
        model = adapt("llama", cluster_init="random", target_modules=["q_proj"], layers_to_transform=[0])
        for shift in range(2):
            rows, places = ids + shift, torch.arange(12).expand(3, 12)
            if packed:
                rows, places = rows.reshape(1, 36), places.reshape(1, 36)
            model(input_ids=rows, position_ids=places)
        runs.append(statistics(model))
    assert all(int(v.sum()) == 2 * ids.numel() for k, v in runs[0].items() if "slim_count" in k)
    torch.testing.assert_close(runs[0], runs[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cluster_init", ["data", "random"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_under_the_padding_do_not_matter(side, cluster_init, ids):
    runs = []
    for filler in (0, 57):
        model = adapt("llama", cluster_init=cluster_init)
        for _ in range(2):
            torch.manual_seed(1)
            model(input_ids=pad(ids, side, filler), attention_mask=padding(side))
        runs.append(statistics(model))
    torch.testing.assert_close(runs[0], runs[1], atol=0, rtol=0)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_without_a_mask_every_token_counts(family, ids):
    model = adapt(family)
    model(input_ids=pad(ids, "right"))
    assert counts(model) == {ids.numel()}


def test_a_mask_counts_for_its_own_forward_only(ids):
    model = adapt("llama")
    model(input_ids=pad(ids, "left"), attention_mask=padding("left"))
    model(input_ids=ids)
    assert counts(model) == {VALID + ids.numel()}


def test_a_first_batch_of_nothing_but_padding_leaves_the_start_to_the_next(ids):
    model = adapt("llama", cluster_init="data")
    model(input_ids=ids, attention_mask=torch.zeros_like(ids))
    assert counts(model) == {0}
    model(input_ids=ids)
    for layer in layers(model).values():
        assert len(layer.slim_center["default"].unique(dim=0)) == 4


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["dynamic", "static", pytest.param("static, compiled", marks=pytest.mark.nightly)])
@torch.no_grad()
def test_a_mask_may_cover_what_is_read_later(kind, padded, ids):
    # A static cache has empty places, and the rest of a prompt is known while its pieces are read.
    model = learned()
    mask = padding("left") if padded else torch.ones_like(ids)
    places = positions(mask)
    whole = model(input_ids=ids, attention_mask=mask, position_ids=places).logits
    config, empty = model.config, 0 if kind == "dynamic" else 8
    cache = DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=12 + empty)
    covering = torch.cat([mask, mask.new_zeros(3, empty)], 1)
    read = torch.compile(model, backend="eager", dynamic=False) if "compiled" in kind else model
    parts = []
    for part, part_places in zip(ids.split([6, 1, 1, 4], 1), places.split([6, 1, 1, 4], 1), strict=True):
        given = {"attention_mask": covering, "position_ids": part_places, "past_key_values": cache}
        parts.append(read(input_ids=part, **given).logits)
    torch.testing.assert_close(torch.cat(parts, 1)[mask == 1], whole[mask == 1], atol=1e-5, rtol=1e-4)


CAUSAL = torch.zeros(12, 12).masked_fill(torch.ones(12, 12).triu(1) == 1, -1e9)
SHUT = torch.zeros(3, 1, 1, 12).masked_fill(padding("right")[:, None, None] == 0, -1e9)
UNREADABLE = {
    # As many entries as tokens, but zero is what may be seen.
    "4D, one row": ("llama", SHUT),
    "by kind of layer": ("gemma3", {"full_attention": SHUT + CAUSAL, "sliding_attention": SHUT + CAUSAL}),
}


def test_a_mask_of_who_attends_to_whom_says_which_tokens_attend_to_themselves(ids):
    model = adapt("llama")
    for mask in (SHUT + CAUSAL, (SHUT + CAUSAL) == 0):
        model(input_ids=ids, attention_mask=mask)
    assert counts(model) == {2 * VALID}


def test_padding_behind_packed_sequences_is_not_counted(ids):
    model = adapt("llama")
    places = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 0]]).expand(3, 12)
    same = torch.tensor([[0] * 5 + [1] * 4 + [2] * 3])
    mask = ((same == same.T) & (same < 2)).tril().expand(3, 1, 12, 12)
    model(input_ids=ids, attention_mask=mask, position_ids=places)
    assert counts(model) == {3 * 9}


@pytest.mark.parametrize("mask", UNREADABLE)
def test_a_mask_that_does_not_name_tokens_lets_every_token_count(mask, ids):
    family, mask = UNREADABLE[mask]
    model = adapt(family)
    logits = model(input_ids=ids, attention_mask=mask).logits
    assert counts(model) == {ids.numel()}
    assert logits.isfinite().all()


@pytest.mark.parametrize("cluster_init", ["data", "random"])
def test_evaluation_never_moves_the_clusters(cluster_init, ids):
    model = adapt("llama", cluster_init=cluster_init)
    model(input_ids=ids)
    before = statistics(model)
    model.eval()
    model(input_ids=ids + 1, attention_mask=padding("left"))
    model.generate(input_ids=ids, attention_mask=padding("left"), max_new_tokens=2, do_sample=False)
    torch.testing.assert_close(statistics(model), before, atol=0, rtol=0)


def test_a_frozen_adapter_never_moves_its_clusters_in_training_mode(ids):
    model = adapt("llama")
    model(input_ids=ids)
    before = statistics(model)
    model.add_adapter("other", config())
    model.set_adapter("other")
    model(input_ids=ids + 1)
    model.set_adapter("default", inference_mode=True)
    model(input_ids=ids + 2)
    after = statistics(model)
    torch.testing.assert_close({k: after[k] for k in before}, before, atol=0, rtol=0)
    assert {int(v.sum()) for k, v in after.items() if "slim_count.other" in k} == {ids.numel()}


def test_generation_in_training_mode_counts_prompts_without_padding_and_each_new_token_once(ids):
    # As in reinforcement learning, where a model in training mode may generate. The mask then covers the cache too.
    model = adapt("llama")
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    model.generate(input_ids=pad(ids, "left"), attention_mask=padding("left"), **settings)
    # The last new token is never fed back.
    assert counts(model) == {VALID + 3 * 3}


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_left_padding_leaves_what_is_generated(family, ids):
    model = adapt(family)
    for _ in range(2):
        model(input_ids=ids)
    model.eval()
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    together = model.generate(input_ids=pad(ids, "left"), attention_mask=padding("left"), **settings)
    for row, prompt, n in zip(together, ids, LENGTHS, strict=True):
        alone = model.generate(
            input_ids=prompt[:n][None], attention_mask=torch.ones(1, n, dtype=torch.long), **settings
        )
        assert row[12:].tolist() == alone[0, n:].tolist()


def test_the_padding_of_an_encoder_is_not_counted(ids, recwarn):
    model = get_peft_model(tiny_t5(), config(target_modules=["q", "k", "v", "o", "wi", "wo"])).train()
    # The decoder's rows are as long as the encoder's, so that the encoder's mask would fit them.
    model(input_ids=pad(ids, "right"), attention_mask=padding("right"), decoder_input_ids=ids)
    token_counts = {name: int(v.sum()) for name, v in statistics(model).items() if "slim_count" in name}
    reads_encoder = [
        n for n in token_counts if ".encoder." in n or "EncDecAttention.k" in n or "EncDecAttention.v" in n
    ]
    assert {token_counts.pop(name) for name in reads_encoder} == {VALID}
    assert len(reads_encoder) == 8 and set(token_counts.values()) == {ids.numel()}
    assert not [w for w in recwarn if "padding" in str(w.message)]
