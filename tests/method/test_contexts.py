# SPDX-License-Identifier: Apache-2.0
"""Contexts against loops in float64: by row, padding, packed sequences and turns, and references by their length."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor

from slim_core import trace_routing
from slim_core.method import SlimLayer
from slim_core.method.clusters import LEVELS, UNSEEN, quantiles_by_bucket, reference_row
from slim_core.method.contexts import Sequences, opens_turn, running_sums, spans
from tests.conftest import TINY
from tests.method import reference
from tests.method.small import learned


FAMILIES = [*TINY, "opt"]


# -- sums ----------------------------------------------------------------------------------------------------------


@st.composite
def forwards(draw) -> tuple:
    batch, tokens = draw(st.integers(1, 3)), draw(st.one_of(st.integers(1, 5), st.integers(30, 70)))
    often = draw(st.sampled_from([0.0, 0.05, 0.5]))
    rare = st.floats(0, 1).map(lambda share: share < often)
    begins = draw(st.lists(rare, min_size=batch * tokens, max_size=batch * tokens))
    padded = draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=batch * tokens, max_size=batch * tokens)))
    return batch, tokens, begins, padded, draw(st.booleans()), draw(st.integers(0, 2**31))


@settings(max_examples=60, deadline=None)
@given(forwards())
def test_running_sums_and_counts_are_those_of_loops(forward):
    batch, tokens, begins, padded, goes_on, seed = forward
    generator = torch.Generator().manual_seed(seed)
    begins = torch.tensor(begins).view(batch, tokens)
    valid = None if padded is None else ~torch.tensor(padded).view(batch, tokens)
    x = torch.randn(batch, tokens, 2, generator=generator)
    x = x if valid is None else x * valid.unsqueeze(-1)
    before = torch.randn(batch, 2, generator=generator) if goes_on else None
    counted = torch.randint(0, 40000, (batch,), generator=generator).float() if goes_on else None
    layout = spans(begins, valid, counted)
    sums = running_sums(x, layout, before)
    for b in range(batch):
        total = torch.zeros(2, dtype=torch.float64) if before is None else before[b].double()
        count = 0 if counted is None else int(counted[b])
        for t in range(tokens):
            if begins[b, t]:
                total, count = torch.zeros_like(total), 0
            total, count = total + x[b, t].double(), count + (1 if valid is None else int(valid[b, t]))
            torch.testing.assert_close(sums[b, t].double(), total, atol=1e-4, rtol=1e-5)
            assert int(layout.length[b, t]) == count
            assert int(layout.bucket[b, t]) == reference.bucket_of(count)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_turns_open_where_a_loop_finds_their_ids(data):
    ids = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=12))
    opening = tuple(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=4)))
    cut = data.draw(st.integers(0, len(ids) - 1))
    whole = torch.tensor([ids])
    opens = opens_turn(whole[:, cut:], opening, whole[:, :cut] if cut else None)[0].tolist()
    ends = range(cut + 1, len(ids) + 1)
    assert opens == [end >= len(opening) and tuple(ids[end - len(opening) : end]) == opening for end in ends]


# -- layers --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def layers_seen(model: PeftModel, **batch) -> list[tuple[SlimLayer, Tensor, Tensor]]:
    """Every SLIM layer, its input and what its experts added in one forward, tokens as (B, T, ...)."""
    seen, shape = [], batch["input_ids"].shape

    def see(layer, args, out):
        x = args[0].view(*shape, -1)
        seen.append((layer, x, (out - layer.base_layer(args[0])).view(*shape, -1)))

    layers = [m for m in model.modules() if isinstance(m, SlimLayer)]
    handles = [layer.register_forward_hook(see) for layer in layers]
    model(**batch)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(layers)
    return seen


def assert_layers_equal_the_slow_formulas(model: PeftModel, mask: Tensor | None = None, opening=(), **batch) -> None:
    inputs = batch if mask is None else batch | {"attention_mask": mask}
    with trace_routing(model) as trace:
        seen = layers_seen(model, **inputs)
    below = [reference.Below() for _ in batch["input_ids"]]
    for layer, x, added in seen:
        state, config = reference.layer_state(layer, "default"), layer.slim_config["default"]
        mean, count = reference.batch_contexts(x, batch["input_ids"], mask, batch.get("position_ids"), opening)
        for row in range(len(x)):
            kept = slice(None) if mask is None else mask[row] == 1
            contexts = mean[row][kept], count[row][kept]
            expected = reference.slim_delta(
                x[row][kept], state, config, layer.scaling["default"], contexts, below[row], layer
            )
            torch.testing.assert_close(added[row][kept].double(), expected, rtol=2e-3, atol=2e-4)
    gates = torch.cat([trace.row(row).gate.flatten() for row in trace.rows])
    assert (gates == 0).any() or (gates < 0.5).any()
    assert (gates == 1).any() and ((gates > 0) & (gates < 1)).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_equals_the_slow_formulas(family, ids):
    assert_layers_equal_the_slow_formulas(learned(family), input_ids=ids[:2])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_in_no_context(family, side, ids):
    mask = torch.ones_like(ids)
    mask[0, :5], mask[2, :2] = 0, 0
    mask = mask if side == "left" else mask.flip(1)
    assert_layers_equal_the_slow_formulas(learned(family), mask, input_ids=ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_sequences_have_contexts_of_their_own(family, ids):
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]])
    assert_layers_equal_the_slow_formulas(learned(family), input_ids=ids[:2], position_ids=positions)


@pytest.mark.parametrize("opening", [(5,), (5, 7), (5, 5, 7)], ids=len)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_turn_begins_a_context_at_the_last_token_of_its_opening(family, opening, ids):
    # At the beginning, in the middle, twice; and a part of one, which opens nothing.
    ids = ids.clone()
    ids[0, : len(opening)] = torch.tensor(opening)
    ids[0, 6 : 6 + len(opening)] = torch.tensor(opening)
    ids[1, 8 : 8 + len(opening)] = torch.tensor(opening)
    ids[2, 5] = opening[-1] if len(opening) > 1 else 6
    model = learned(family, turn_opening=list(opening), context_warmup=1)
    assert_layers_equal_the_slow_formulas(model, opening=opening, input_ids=ids)


def test_a_sequence_of_several_blocks_is_summed_from_block_to_block():
    ids = torch.randint(3, 99, (2, 75), generator=torch.Generator().manual_seed(5))
    ids[1, 40:42] = torch.tensor([5, 7])
    model = learned(target_modules=["q_proj"], turn_opening=[5, 7])
    assert_layers_equal_the_slow_formulas(model, opening=(5, 7), input_ids=ids)


def test_an_input_that_is_not_the_models_tokens_is_a_sentence(ids):
    model = learned(target_modules=["q_proj"])
    layer = next(m for m in model.modules() if isinstance(m, SlimLayer))
    layer.register_forward_pre_hook(lambda _, args: (args[0][:, :-1],))
    with pytest.raises(
        ValueError, match=r"q_proj` was given an input of shape \[3, 11, 32\], which is not the tokens"
    ):
        model(input_ids=ids)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), 3e38])
def test_an_overflow_changes_no_context_before_it_nor_of_another_turn(value, ids):
    model = learned(target_modules=["q_proj"], layers_to_transform=[0], turn_opening=[7])
    layer = next(m for m in model.modules() if isinstance(m, SlimLayer))
    ids = ids.clone()
    ids[ids == 7] = 8
    ids[:, 8] = 7
    with torch.no_grad(), trace_routing(model) as calm:
        model(input_ids=ids)

    def spoil(_, args):
        x = args[0].clone()
        x[0, 5, 3] = value
        return (x,)

    layer.register_forward_pre_hook(spoil)
    with torch.no_grad(), trace_routing(model) as wild:
        model(input_ids=ids)
    kept = [0, 1, 2, 3, 4, 8, 9, 10, 11]
    for name in ("weights", "distance", "gate"):
        actual, expected = getattr(wild.row(0), name), getattr(calm.row(0), name)
        assert torch.equal(actual[:, kept], expected[:, kept])
        assert torch.equal(getattr(wild.row(1), name), getattr(calm.row(1), name))
    assert (wild.row(0).gate[:, 6:8] == 0).all()


def test_an_overflow_is_not_learned(ids):
    model = learned(target_modules=["q_proj"], layers_to_transform=[0])
    layer = next(m for m in model.modules() if isinstance(m, SlimLayer))
    layer.register_forward_pre_hook(lambda _, args: (args[0].index_fill(1, torch.tensor([5]), torch.inf),))
    counted = int(layer.state_dict()["slim_count.default"].sum())
    model.train()(input_ids=ids)
    state = layer.state_dict()
    assert all(state[f"{name}.default"].isfinite().all() for name in ("slim_center", "slim_var", "slim_token_mean"))
    # The contexts before it, of three rows.
    assert int(state["slim_count.default"].sum()) == counted + 3 * 5


# 7 opens a turn. No loss: ".", first of a packed sequence: "|".
LESSONS = {
    # tokens, labels, positions, what is learned
    "one turn": ("7 1 2 3", "....", None, "0000"),
    "an answer": ("7 1 2 3", "...3", None, "1111"),
    "what comes before the first turn": ("5 6 7 1", "...1", None, "1111"),
    "an earlier turn without loss": ("5 7 1 2 7 3 4", "......4", None, "0000111"),
    "a later turn without loss": ("5 7 1 2 7 3 4", "...2...", None, "1111000"),
    "nothing but what comes before": ("5 6 1 7 2", "..1..", None, "11100"),
    "packed": ("7 1 2 7 3 4", ".....4", "0 1 2 0 1 2", "000111"),
    "packed, with something before its turn": ("7 1 5 7 3 4", ".....4", "0 1 0 1 2 3", "001111"),
}


@pytest.mark.parametrize("case", LESSONS)
def test_clusters_learn_from_turns_that_have_a_loss(case):
    text, loss, positions, expected = LESSONS[case]
    ids = torch.tensor([[int(token) for token in text.split()]])
    sequences = Sequences(1, ids.shape[1], ids.device, ids)
    if positions:
        sequences.positions = torch.tensor([[int(position) for position in positions.split()]])
    assert sequences.learned_from((7,)) is None
    sequences = Sequences(1, ids.shape[1], ids.device, ids, positions=sequences.positions)
    sequences.taught = torch.tensor([[mark != "." for mark in loss]])
    assert sequences.learned_from(()) is None
    assert "".join(str(int(x)) for x in sequences.learned_from((7,))) == expected


def test_a_turn_without_loss_teaches_no_layer_anything(ids):
    model = learned(target_modules=["q_proj"], layers_to_transform=[0], turn_opening=[7])
    state = next(m for m in model.modules() if isinstance(m, SlimLayer)).state_dict
    ids = ids.where(ids != 7, 8)
    ids[:, [0, 5]] = 7
    labels = ids.clone()
    labels[:, 5:] = -100
    labels[1, :5] = -100
    counted = int(state()["slim_count.default"].sum())
    model.train()(input_ids=ids, labels=labels)
    model.eval()(input_ids=ids)
    assert int(state()["slim_count.default"].sum()) == counted + 5 * (len(ids) - 1)


# -- references by length ------------------------------------------------------------------------------------------


def test_quantiles_are_those_of_each_bucket():
    distance, bucket = torch.randn(300, dtype=torch.float64), torch.randint(0, 5, (300,))
    counted = torch.rand(300) > 0.2
    counted &= bucket != 3
    bucket[bucket == 2], counted[7] = 4, True
    bucket[7] = 2  # a bucket of one
    quantiles = quantiles_by_bucket(distance, bucket, counted, 6)
    for b in range(6):
        mine = distance[counted & (bucket == b)]
        assert (quantiles[1, :, b] == len(mine)).all()
        for i, level in enumerate(LEVELS):
            expected = len(mine) * torch.quantile(mine, level) if len(mine) else 0.0
            assert quantiles[0, i, b].item() == pytest.approx(float(expected))


@pytest.mark.parametrize("quantile", [0.01, 0.5, 0.6, 0.75, 0.99, 0.995, 0.9999])
def test_a_reference_is_interpolated_and_long_lengths_take_the_longest_one_seen(quantile):
    kept = torch.rand(len(LEVELS), 16).cumsum(0)
    kept[:, [3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]] = UNSEEN
    row = reference_row(kept, quantile)
    for count in (1, 2, 5, 9, 40, 63, 64, 5000, 2**15, 2**20):
        slow = reference.in_domain(kept, quantile, count)
        assert row[reference.bucket_of(count)].item() == pytest.approx(slow)
    assert row[3] == row[2] and row[15] == row[5]


def test_before_any_training_nothing_is_beyond_the_reference():
    row = reference_row(torch.full((len(LEVELS), 16), UNSEEN), 0.99)
    assert (row == UNSEEN).all()


def test_linears_that_read_the_same_input_share_its_sums(ids, monkeypatch):
    model = learned(target_modules="all-linear")
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=True)
    summed = []
    sum_up = Sequences._sum_up
    monkeypatch.setattr(
        Sequences, "_sum_up", lambda self, *arguments: summed.append(arguments) or sum_up(self, *arguments)
    )
    with torch.no_grad():
        actual = model(input_ids=ids, use_cache=True)
        after = model(input_ids=ids[:, :1], past_key_values=actual.past_key_values)
    blocks = model.config.num_hidden_layers
    # q, k and v; o; gate and up; down. Each in two forwards.
    assert len(summed) == 2 * 4 * blocks
    assert torch.equal(actual.logits, expected.logits)
    whole = model(input_ids=torch.cat([ids, ids[:, :1]], 1)).logits[:, -1:]
    torch.testing.assert_close(after.logits, whole, atol=1e-4, rtol=1e-4)


def test_contexts_are_where_the_tokens_are():
    x = torch.empty(12, 4, device="meta")
    contexts = Sequences(2, 6, x.device).contexts("router", (), x, None)
    assert {part.device.type for part in contexts} == {"meta"}


def test_a_router_in_evaluation_mode_still_gets_its_gradient(ids):
    model = learned()
    with torch.no_grad():
        model(input_ids=ids)  # keeps a router that is folded for good
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("slim_" in name)
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = [p.grad for name, p in model.named_parameters() if "slim_router" in name]
    assert gradients and all(gradient is not None for gradient in gradients)


def test_a_router_that_changed_is_folded_again(ids):
    model = learned()
    with torch.no_grad():
        before = model(input_ids=ids).logits
        for layer in (m for m in model.modules() if isinstance(m, SlimLayer)):
            layer.slim_router_bias["default"][0] += 5.0
        assert not torch.equal(model(input_ids=ids).logits, before)
