# SPDX-License-Identifier: Apache-2.0
"""Contexts go on from a key-value cache: the same numbers however a sequence is read, and whatever is done to it."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache

from slim_core import trace_routing
from slim_core.method.sequence_state import GUESSES
from slim_core.peft_tools import adapter_rows
from tests.conftest import TINY, build
from tests.method.small import T5_LINEARS, learn, learned, slim, tiny_t5


FAMILIES = [*TINY, "opt"]
WAYS = {"token by token": [1] * 12, "chunks": [5, 1, 3, 3], "all but one": [11, 1], "prompt and tokens": [6, *[1] * 6]}
TURNS = {"turn_opening": [5, 7], "context_warmup": 1}


@torch.no_grad()
def read(model, ids: Tensor, parts: list[int], cache: Cache | None = None, mask: Tensor | None = None) -> Tensor:
    """Logits of `ids`, read in parts; the cache holds what was read before."""
    outputs, done = [], 0
    before = 0 if cache is None else int(cache.get_seq_length())
    for part in parts:
        inputs = {} if mask is None else {"attention_mask": mask[:, : before + done + part]}
        if mask is not None:
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            inputs["position_ids"] = positions[:, before + done : before + done + part]
        out = model(input_ids=ids[:, done : done + part], past_key_values=cache, use_cache=True, **inputs)
        cache, done = out.past_key_values, done + part
        outputs.append(out.logits)
    return torch.cat(outputs, 1)


@torch.no_grad()
def filled(model, ids: Tensor) -> Cache:
    return model(input_ids=ids, use_cache=True).past_key_values


@torch.no_grad()
def whole(model, ids: Tensor) -> Tensor:
    """Without any cache."""
    return model(input_ids=ids, use_cache=False).logits


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-4 * expected.abs().max().item())


def refuses(model, ids: Tensor, cache: Cache, why: str) -> None:
    length = int(cache.get_seq_length())
    sentence = rf"cache holds {length} tokens whose contexts SLIM does not know: {why}.*read the whole sequence again"
    with pytest.raises(ValueError, match=sentence), torch.no_grad():
        model(input_ids=ids[:, :1], past_key_values=cache)
    # Nothing of the broken forward is left.
    assert_near(read(model, ids, [6, 6]), whole(model, ids))


def with_turns(ids: Tensor) -> Tensor:
    """Openings whose tokens come in different parts, one inside of a part, and half of one."""
    ids = ids.clone()
    for row, place in ((0, 4), (0, 9), (1, 6)):
        ids[row, place : place + 2] = torch.tensor([5, 7])
    ids[2, 5] = 7
    return ids


# -- however a sequence is read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [{}, TURNS], ids=["one context", "turns"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_give_the_numbers_of_the_whole(family, way, turns, ids):
    model, ids = learned(family, **turns), with_turns(ids)
    with trace_routing(model) as of_parts:
        actual = read(model, ids, WAYS[way])
    with trace_routing(model) as of_whole:
        expected = whole(model, ids)
    assert_near(actual, expected)
    for row in of_whole.rows:
        a, b = of_parts.row(row), of_whole.row(row)
        torch.testing.assert_close(a.gate, b.gate, rtol=1e-3, atol=2e-3)
        torch.testing.assert_close(a.reference, b.reference, rtol=1e-4, atol=1e-4)
        assert a.gate.std() > 0.01


@pytest.mark.parametrize("way", WAYS)
def test_rows_of_one_token_go_on_from_a_prompt_in_the_same_way(way, ids):
    model, ids = learned(merge="none", **TURNS), with_turns(ids)
    with adapter_rows(model, ["default", "__base__", "default"]):
        actual = read(model.get_base_model(), ids, WAYS[way])
    assert_near(actual[[0, 2]], whole(model, ids)[[0, 2]])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_left_padding_changes_nothing_however_it_is_read(family, way, ids):
    model, ids = learned(family, **TURNS), with_turns(ids)
    padded = torch.cat([ids[:, :3].flip(1), ids], 1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    actual = read(model, padded, [3 + WAYS[way][0], *WAYS[way][1:]], mask=mask)
    assert_near(actual[:, 3:], whole(model, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_alone_reads_as_in_a_batch(family, ids):
    model, ids = learned(family, **TURNS), with_turns(ids)
    together = read(model, ids, [6, *[1] * 6])
    for row in range(3):
        assert_near(read(model, ids[row : row + 1], [6, *[1] * 6])[0], together[row])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_token_changes_no_earlier_routing(family, ids):
    model, other = learned(family), ids.clone()
    other[:, 7:] = ids.flip(1)[:, 7:]
    with torch.no_grad(), trace_routing(model) as first:
        model(input_ids=ids)
    with torch.no_grad(), trace_routing(model) as second:
        model(input_ids=other)
    for row in first.rows:
        for name in ("weights", "distance", "cluster", "gate", "reference"):
            a, b = getattr(first.row(row), name), getattr(second.row(row), name)
            torch.testing.assert_close(a[:, :7], b[:, :7], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(first.row(row).gate[:, 7:], second.row(row).gate[:, 7:])


def test_embeddings_in_place_of_ids_go_on_too(ids):
    model = learned()
    embed = model.get_input_embeddings()
    with torch.no_grad():
        first = model(inputs_embeds=embed(ids[:, :6]), use_cache=True)
        rest = model(inputs_embeds=embed(ids[:, 6:]), past_key_values=first.past_key_values)
    assert_near(torch.cat([first.logits, rest.logits], 1), whole(model, ids))


def test_a_linear_that_runs_twice_in_a_forward_has_two_sequences(ids):
    base = build("llama")
    base.model.layers[1].mlp = base.model.layers[0].mlp
    model = learned(base=base)
    assert_near(read(model, ids, [5, *[1] * 7]), whole(model, ids))
    with adapter_rows(model, ["default"] * 3):
        assert_near(read(model.get_base_model(), ids, [5, *[1] * 7]), whole(model, ids))


def test_two_active_adapters_go_on_each_from_its_own(ids):
    model = learned()
    model.add_adapter("other", slim(target_modules="all-linear", turn_opening=[7]))
    model.base_model.set_adapter(["default", "other"])
    learn(model, "other")
    assert_near(read(model, ids, [5, *[1] * 7]), whole(model, ids))


def test_a_decoder_of_two_stacks_goes_on(ids):
    model = learned_t5(ids)
    with torch.no_grad():
        expected = model(input_ids=ids, decoder_input_ids=ids[:, :8], use_cache=False).logits
        encoded = model.get_encoder()(input_ids=ids)
        cache, steps = None, []
        for t in range(8):
            out = model(
                encoder_outputs=encoded, decoder_input_ids=ids[:, t : t + 1], past_key_values=cache, use_cache=True
            )
            cache = out.past_key_values
            steps.append(out.logits)
    assert_near(torch.cat(steps, 1), expected)


def learned_t5(ids: Tensor) -> PeftModel:
    torch.manual_seed(2)
    # With this strength its gates are open in part when it generates, and it does not say what the base says.
    settings = {"yield_quantile": 0.6, "yield_strength": 0.5, "alpha": 64.0}
    model = PeftModel(tiny_t5(), slim(target_modules=T5_LINEARS, **settings))
    model.train()
    with torch.no_grad():
        for shift in range(3):
            model(input_ids=ids + shift % 2, decoder_input_ids=ids.flip(1))
    return model.eval()


# -- whatever is done to a cache -----------------------------------------------------------------------------------


# What is done, to which of the rows that leads, and how many of nine tokens are left.
CHANGES: dict[str, tuple[Callable[[Cache], object], list[int], int]] = {
    "reorder": (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0], 9),
    "select": (lambda cache: cache.batch_select_indices(torch.tensor([1, 2])), [1, 2], 9),
    "repeat": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2], 9),
    "crop": (lambda cache: cache.crop(-3), [0, 1, 2], 6),
    "crop twice": (lambda cache: (cache.crop(-1), cache.crop(-2)), [0, 1, 2], 6),
    "crop to nothing": (lambda cache: cache.crop(-9), [0, 1, 2], 0),
    "select after a crop": (
        lambda cache: (cache.crop(-2), cache.reorder_cache(torch.tensor([1, 1, 0]))),
        [1, 1, 0],
        7,
    ),
}


@pytest.mark.parametrize("parts", [[9], [5, 4], [5, 1, 3]], ids=str)
@pytest.mark.parametrize("change", CHANGES)
def test_the_state_follows_its_cache(change, parts, ids):
    act, rows, left = CHANGES[change]
    model, ids = learned(**TURNS), with_turns(ids)
    cache = DynamicCache(config=model.config)
    read(model, ids[:, :9], parts, cache)
    act(cache)
    assert int(cache.get_seq_length()) == left
    actual = read(model, ids[rows, left:], [1, 11 - left], cache)
    assert_near(actual, whole(model, ids[rows])[:, left:])


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_a_cache_may_be_given_by_either_of_its_names(name, ids):
    model = learned(**TURNS)
    names = inspect.signature(model.get_base_model().forward).parameters
    if name not in names and "cache" not in names:
        pytest.skip(f"this version of transformers does not have `{name}` yet")
    ids, cache = with_turns(ids), DynamicCache(config=model.config)
    with torch.no_grad():
        parts = [model(input_ids=part, use_cache=True, **{name: cache}).logits for part in ids.split([5, 1, 6], 1)]
    assert_near(torch.cat(parts, 1), whole(model, ids))


def test_a_cache_that_is_reset_begins_anew(ids):
    model = learned()
    cache = StaticCache(config=model.config, max_cache_len=16)
    read(model, ids.flip(1)[:, :9], [5, 1, 3], cache)
    cache.reset()
    assert_near(read(model, ids, [5, 1, 6], cache), whole(model, ids))


@pytest.mark.parametrize("way", ["copy", "pickle", "file"])
def test_a_copy_of_a_cache_goes_on_by_itself(way, ids):
    model = learned(**TURNS)
    cache = filled(model, ids[:, :6])
    if way == "copy":
        twin = copy.deepcopy(cache)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(cache))
    else:
        file = io.BytesIO()
        torch.save(cache, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    other = ids.flip(1)
    read(model, other[:, 6:], [3, 3], cache)
    assert_near(read(model, ids[:, 6:], [1, 5], twin), whole(model, ids)[:, 6:])


def test_a_cache_is_still_what_it_was(ids):
    cache = filled(learned(), ids)
    assert isinstance(cache, DynamicCache) and type(cache).__name__ == "DynamicCache"


def test_a_prompt_can_be_taken_up_again_for_another_answer(ids):
    model = learned()
    cache = filled(model, ids[:, :8])
    read(model, ids[:, 8:], [4], cache)
    cache.crop(-4)
    other = torch.cat([ids[:, :8], ids.flip(1)[:, :4]], 1)
    assert_near(read(model, other[:, 8:], [2, 2], cache), whole(model, other)[:, 8:])


@pytest.mark.parametrize("opening", [None, [7], [7, 3]])
@pytest.mark.parametrize("crops", [(1,), (2,), (3,), (4,), (5,), (6,), (9,), (1, 1), (2, 3), (3, 1, 2)])
def test_a_row_can_lose_several_forwards(crops, opening, ids):
    model, row = learned(turn_opening=opening), ids[:1].clone()
    row[0, [2, 5, 8]], row[0, [3, 9]] = 7, 3
    cache = DynamicCache(config=model.config)
    read(model, row[:, :11], [4, 1, 2, 1, 1, 2], cache)
    for count in crops:
        cache.crop(-count)
    kept = 11 - sum(crops)
    assert_near(read(model, row[:, kept:], [1, 11 - kept], cache), whole(model, row)[:, kept:])


def test_only_so_many_forwards_are_kept(ids):
    model = learned()
    cache = DynamicCache(config=model.config)
    row = ids[:1].repeat(1, 4)
    read(model, row[:, : GUESSES + 5], [1] * (GUESSES + 5), cache)
    twin = copy.deepcopy(cache)
    twin.crop(-GUESSES)
    assert_near(read(model, row[:, 5:], [row.shape[1] - 5], twin), whole(model, row)[:, 5:])
    cache.crop(-GUESSES - 2)
    refuses(model, ids[:1], cache, "code other than the adapted model added or removed some of them")


def test_no_forward_is_kept_that_so_many_tokens_cannot_reach(ids):
    cache = DynamicCache(config=learned().config)
    row = ids[:1].repeat(1, 6)
    read(learned(), row[:, :60], [10] * 6, cache)
    state = cache.slim_sequences
    assert [was.length for was in state.earlier] == [40, 50]
