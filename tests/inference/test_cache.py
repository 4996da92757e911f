# SPDX-License-Identifier: Apache-2.0
"""The cache that grows in place holds what transformers' own holds."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicSlidingWindowLayer

from slim_core.inference.cache import ROOM, GrowingLayer, growing_cache, joined_cache
from slim_core.method import RowsOf
from slim_core.peft_tools import adapter_rows
from tests.method.small import learned


CONFIG = LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2)


class Both:
    """The same done to both caches."""

    def __init__(self) -> None:
        self.own, self.theirs = growing_cache(CONFIG), DynamicCache(config=CONFIG)
        self._dice = torch.Generator().manual_seed(0)
        self.rows = 3

    def read(self, tokens: int) -> None:
        for layer in range(2):
            # Values may be of another width than keys.
            keys, values = (torch.randn(self.rows, 2, tokens, w, generator=self._dice) for w in (8, 6))
            actual, expected = (cache.update(keys, values, layer) for cache in (self.own, self.theirs))
            assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
        assert self.own.get_seq_length() == self.theirs.get_seq_length()

    def do(self, what: str, *args) -> None:
        for cache in (self.own, self.theirs):
            getattr(cache, what)(*args)


@pytest.mark.parametrize("prompt", [1, ROOM - 1, ROOM, ROOM + 1, 2 * ROOM + 3])
def test_it_holds_what_came(prompt):
    both = Both()
    for tokens in (prompt, 1, 1, 5, ROOM, 1, 2 * ROOM, 1):
        both.read(tokens)


def test_rows_that_leave_columns_that_go_and_rows_that_move():
    both = Both()
    both.read(7)
    both.do("batch_select_indices", torch.tensor([0, 2]))
    both.rows = 2
    both.read(1)
    both.do("crop", -3)
    both.read(2)
    both.do("reorder_cache", torch.tensor([1, 0]))
    both.read(1)
    for cache in (both.own, both.theirs):
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, 2:], layer.values[:, :, 2:]
    both.read(1)
    both.do("batch_repeat_interleave", 2)
    both.rows = 4
    both.read(1)
    both.do("reset")
    both.read(3)


def test_nothing_is_copied_while_there_is_room():
    both = Both()
    both.read(5)
    layer = both.own.layers[1]
    places = layer.keys.data_ptr(), layer.values.data_ptr()
    for _ in range(ROOM - 5):
        both.read(1)
        assert (layer.keys.data_ptr(), layer.values.data_ptr()) == places
    both.read(1)
    assert layer.keys.data_ptr() != places[0]


def test_what_was_handed_out_stays_as_it_was():
    cache = growing_cache(CONFIG)
    first, _ = cache.update(torch.ones(1, 2, 4, 8), torch.ones(1, 2, 4, 8), 0)
    cache.update(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8), 0)
    assert first.shape == (1, 2, 4, 8) and bool((first == 1).all())


def test_layers_with_a_window_stay_as_they_are():
    config = MistralConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, sliding_window=8)
    assert {type(layer) for layer in growing_cache(config).layers} == {DynamicSlidingWindowLayer}
    assert {type(layer) for layer in growing_cache(CONFIG).layers} == {GrowingLayer}


@torch.no_grad()
def test_rows_of_several_caches_go_on_as_each_alone():
    """One has the first half of a turn's opening read, and another one's padding is cut off."""
    model = learned(turn_opening=[5, 7], context_warmup=1)
    base, dice = model.get_base_model(), torch.Generator().manual_seed(1)
    texts = torch.randint(10, model.config.vocab_size, (3, 12), generator=dice)
    texts[0, 4:6] = texts[1, 7:9] = torch.tensor([5, 7])
    begins, names = [0, 0, 2], ["default", "__base__", "default"]

    def read(cache, upto: int, tokens: int, rows: list[int], padding: list[int]):
        """The next tokens of some rows up to a column, as they stand in a cache with so much padding."""
        ids = torch.stack([texts[row, upto - tokens : upto] for row in rows])
        behind = torch.tensor([begins[row] for row in rows])[:, None]
        positions = (torch.arange(upto - tokens, upto) - behind).clamp(min=0)
        columns = cache.get_seq_length() + tokens
        mask = (torch.arange(columns) >= torch.tensor(padding)[:, None]).long()
        with adapter_rows(base, [names[row] for row in rows]):
            return base(
                input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
            ).logits[:, -1]

    first, second = growing_cache(model.config), growing_cache(model.config)
    read(first, 5, 5, [0, 1], [0, 0])
    # The text begins behind two columns of padding; a row that will leave is beside it.
    read(second, 5, 5, [2, 0], [2, 0])
    short = joined_cache(model.config, [RowsOf(second, torch.tensor([0]), torch.tensor([0]))], 1, 3)
    parts = [
        RowsOf(first, torch.tensor([1, 0]), torch.tensor([0, 2])),
        RowsOf(short, torch.tensor([0]), torch.tensor([1])),
    ]
    whole = joined_cache(model.config, parts, 3, 5)
    order = [1, 2, 0]
    for upto in range(6, 12):
        logits = read(whole, upto, 1, order, [0, 2, 0])
        for place, row in enumerate(order):
            with adapter_rows(base, [names[row]]):
                expected = base(input_ids=texts[row : row + 1, begins[row] : upto], use_cache=False).logits[0, -1]
            torch.testing.assert_close(logits[place], expected, rtol=1e-4, atol=1e-4)
    # What was put together stays as it was.
    assert first.get_seq_length() == 5 and short.get_seq_length() == 3
