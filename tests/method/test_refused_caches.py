# SPDX-License-Identifier: Apache-2.0
"""Caches from which contexts cannot go on are refused, with the reason; and which rows may go on from which."""

from __future__ import annotations

from inspect import signature

import pytest
import torch
from transformers import Cache, DynamicCache, RwkvConfig, RwkvForCausalLM

from slim_core.method.given import returned_cache, sequences_of
from slim_core.method.sequence_state import TRAIL
from slim_core.peft_tools import adapter_rows
from tests.conftest import build
from tests.method.small import learned, slim, small_base
from tests.method.test_sequence_state import assert_near, filled, read, refuses, whole


def test_a_cache_that_was_filled_while_the_adapter_was_off_is_refused(ids):
    model = learned()
    with model.disable_adapter():
        cache = filled(model, ids)
        read(model, ids, [6, 6])  # the base itself goes on
    refuses(model, ids, cache, "other code|the adapter that should continue")


def test_a_cache_that_another_adapter_filled_is_refused(ids):
    model = learned()
    model.add_adapter("other", slim(target_modules="all-linear"))
    model.set_adapter("other")
    model.eval()
    cache = filled(model, ids)
    model.set_adapter("default")
    refuses(model, ids, cache, "the adapter that should continue did not read them")


def test_a_cache_that_a_deleted_adapter_of_the_same_name_filled_is_refused(ids):
    model = learned()
    model.add_adapter("other", slim(target_modules="all-linear"))
    cache = filled(model, ids)
    model.delete_adapter("default")
    model.add_adapter("default", slim(target_modules="all-linear"))
    model.set_adapter("default")
    model.eval()
    refuses(model, ids, cache, "the adapter that should continue did not read them")


def test_a_new_adapter_of_a_deleted_name_goes_on_from_its_own_cache(ids):
    model = learned()
    model.add_adapter("other", slim(target_modules="all-linear"))
    model.delete_adapter("default")
    model.add_adapter("default", slim(target_modules="all-linear"))
    model.set_adapter("default")
    model.eval()
    assert_near(read(model, ids, [6, 6]), whole(model, ids))


def test_a_cache_that_the_base_filled_before_is_refused(ids):
    cache = filled(build("llama"), ids)
    refuses(learned(), ids, cache, "code other than the adapted model added")


def test_a_cache_of_another_kind_is_refused(ids):
    class Paged:
        """As continuous batching has one."""

    arguments = {"input_ids": ids, "cache": Paged()}
    sequences = sequences_of(learned(), arguments, None, contextual=True)
    with pytest.raises(ValueError, match=r"this one is a Paged\. Pass a `DynamicCache`, or none"):
        sequences.check_known()


def test_a_state_that_is_no_cache_is_refused(ids):
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}
    model = learned(base=RwkvForCausalLM(RwkvConfig(**sizes)).eval())
    with torch.no_grad():
        state = model(input_ids=ids[:1], use_cache=True).state
        with pytest.raises(ValueError, match=r"this one is a list\. .* or none \(`use_cache=False`\)"):
            model(input_ids=ids[:1, :1], state=state)


@torch.no_grad()
def test_the_state_of_a_recurrent_model_is_refused_where_its_contexts_are_not_known(ids):
    model = learned("mamba")
    cache = DynamicCache(config=model.config)
    given = "cache" if "cache" in signature(type(model.get_base_model()).forward).parameters else "cache_params"
    with model.disable_adapter():
        model(input_ids=ids, **{given: cache})
    for filled_by_the_base in (cache, small_base("mamba")(input_ids=ids)[given]):
        with pytest.raises(ValueError, match="whose contexts SLIM does not know"):
            model(input_ids=ids[:, :1], **{given: filled_by_the_base})
    cache.reset()
    assert_near(
        model(input_ids=ids[:, :8], **{given: cache}).logits[:, -1:], model(input_ids=ids[:, :8]).logits[:, -1:]
    )
    assert_near(model(input_ids=ids[:, 8:9], **{given: cache}).logits, model(input_ids=ids[:, :9]).logits[:, -1:])


def test_a_cache_that_was_added_to_by_hand_is_refused(ids):
    model = learned()
    cache = filled(model, ids)
    for layer in range(2):
        cache.update(torch.zeros(3, 2, 1, 8), torch.zeros(3, 2, 1, 8), layer)
    refuses(model, ids, cache, "code other than the adapted model added or removed some of them")


@pytest.mark.parametrize(("kept", "rows"), [(slice(1), 1), ([0, 0, 1, 1, 2, 2], 6)], ids=["fewer", "more"])
def test_a_cache_whose_rows_were_chosen_by_hand_is_refused(kept, rows, ids):
    model = learned()
    cache = filled(model, ids)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[kept], layer.values[kept]
    refuses(model, ids[kept], cache, f"it remembers 3 rows, and {rows} are read now")


def test_a_cache_that_was_cropped_too_far_is_refused(ids):
    model = learned()
    cache = filled(model, ids.repeat(1, 6)[:, : TRAIL + 2])
    cache.crop(-3)
    refuses(model, ids, cache, "code other than the adapted model added or removed some of them")


def test_a_cache_that_lost_more_than_its_last_forward_is_refused(ids):
    model = learned()
    cache = DynamicCache(config=model.config)
    read(model, ids[:, :9], [5, 1, 1, 1, 1], cache)
    cache.crop(-3)
    refuses(model, ids, cache, "code other than the adapted model added or removed some of them")


def test_a_long_prompt_goes_on_and_can_lose_what_came_after_it(ids):
    model, long = learned(), torch.cat([ids.repeat(1, 6), ids.flip(1)], 1)
    cache = filled(model, long[:, :72])
    read(model, ids, [4], cache)
    cache.crop(-4)
    assert_near(read(model, long[:, 72:], [1, 11], cache), whole(model, long)[:, 72:])


def test_the_base_goes_on_from_any_cache(ids):
    model = learned()
    expected = whole(build("llama"), ids)
    cache = filled(build("llama"), ids[:, :6])
    with model.disable_adapter():
        assert_near(read(model, ids[:, 6:], [1, 5], cache), expected[:, 6:])
    cache = filled(build("llama"), ids[:, :6])
    with adapter_rows(model, ["__base__"] * 3):
        assert_near(read(model.get_base_model(), ids[:, 6:], [1, 5], cache), expected[:, 6:])


def test_rows_go_on_with_their_adapter_or_as_the_base_and_nothing_else(ids):
    model = learned()
    model.add_adapter("other", slim(target_modules="all-linear"))
    model.eval()
    base = model.get_base_model()
    names = ["default", "other", "__base__"]

    def prompt() -> Cache:
        with adapter_rows(model, names):
            return filled(base, ids[:, :6])

    for now in (names, ["default", "__base__", "__base__"], ["__base__"] * 3):
        cache = prompt()
        with adapter_rows(model, names):
            expected = read(base, ids, [6, 1, 5])[:, 6:]
        with adapter_rows(model, now):
            actual = read(base, ids[:, 6:], [1, 5], cache)
        for row in range(3):
            if now[row] == names[row]:
                assert_near(actual[row], expected[row])
    for now in (["default", "default", "__base__"], ["default", "other", "default"], ["other", "default", "__base__"]):
        cache = prompt()
        with adapter_rows(model, now), pytest.raises(ValueError, match="did not read them"):
            read(base, ids[:, 6:], [1, 5], cache)


def test_rows_go_on_from_what_the_active_adapter_read(ids):
    model = learned()
    cache = filled(model, ids[:, :6])
    with adapter_rows(model, ["default", "__base__", "default"]):
        actual = read(model.get_base_model(), ids[:, 6:], [1, 5], cache)
    assert_near(actual[[0, 2]], whole(model, ids)[[0, 2], 6:])


@pytest.mark.parametrize("cache", [None, DynamicCache()])
def test_an_output_is_not_asked_for_the_name_that_its_cache_does_not_have(cache):
    """transformers 5.24 warns whoever asks for the old one."""

    class Output(dict):
        def _asked(self, method, key, *default):
            assert key == "cache"
            return getattr(dict, method)(self, key, *default)

        def __getitem__(self, key):
            return self._asked("__getitem__", key)

        def __contains__(self, key):
            return self._asked("__contains__", key)

        def get(self, key, default=None):
            return self._asked("get", key, default)

    assert returned_cache(Output(cache=cache)) is cache
