# SPDX-License-Identifier: Apache-2.0
"""What a layer keeps, forgets, warns of and allocates from one forward to the next."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slim_core.method.context import ForwardContext
from slim_core.method.layer import SlimLayer
from slim_core.method.linear import Linear
from slim_core.method.routing import cluster_tables
from tests.conftest import build
from tests.method.small import slim, slim_layers, tiny_bart
from tests.method.test_properties import random_layer, slim_config, trained


def test_training_in_evaluation_mode_is_warned_of(ids):
    model = get_peft_model(build("llama"), slim_config())
    assert not model.base_model.model.training  # as transformers loads a base model
    with pytest.warns(UserWarning, match=r"its clusters do not move. Call `model.train\(\)`"):
        model(input_ids=ids, labels=ids).loss.backward()


def test_evaluating_with_gradients_switched_on_is_no_reason_to_warn(ids, recwarn):
    trained("llama")(input_ids=ids, labels=ids)
    assert not [w for w in recwarn if "evaluation mode" in str(w.message)]


def test_an_evaluation_under_inference_mode_spoils_nothing(ids):
    model = trained("llama")
    with torch.inference_mode():
        expected = model(ids).logits.clone()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert torch.equal(model(ids).logits, expected)


def test_a_changed_cluster_is_noticed_between_evaluations(ids):
    model = trained("llama")
    before = model(ids).logits
    for layer in (m for m in model.modules() if isinstance(m, SlimLayer)):
        layer.slim_var["default"].mul_(0.1)
    assert not torch.allclose(model(ids).logits, before)


def test_loading_a_state_forgets_what_was_seen_after_it(ids):
    model = trained("llama").train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model.eval()(ids).logits
    model.train()(input_ids=ids)
    model.load_state_dict(state)
    assert torch.equal(model.eval()(ids).logits, expected)


def test_far_tokens_that_overflow_half_precision_get_the_base_output():
    layer = random_layer()
    layer.half()
    layer.slim_A["default"].data.mul_(100)
    x = torch.full((2, 24), 3e4, dtype=torch.float16)
    assert torch.equal(layer(x), layer.base_layer(x)) and layer(x).isfinite().all()


def test_dropout_is_on_the_experts_input_and_only_in_training():
    layer = random_layer(dropout=0.9, merge="none", cluster_init="random")
    layer.requires_grad_(True)
    x = torch.randn(50, 24)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    first = layer(x)
    layer.load_state_dict(state)
    assert not torch.allclose(layer(x), first)


def test_random_centres_differ_from_each_other():
    layer = Linear(nn.Linear(8, 8), "default", slim_config(cluster_init="random"), 2, 4.0, ForwardContext(), "layer")
    assert torch.cdist(layer.slim_center["default"], layer.slim_center["default"]).fill_diagonal_(9).min() > 0.1


def test_a_shared_routing_is_not_that_of_an_earlier_content():
    model = trained("llama", router_scope="block")
    attention = model.base_model.model.model.layers[0].self_attn
    x = torch.randn(1, 5, 32)
    attention.q_proj(x)  # k and v, which would read it too, are never called
    x.mul_(-3)
    expected = attention.q_proj(x.clone())
    assert torch.equal(attention.q_proj(x), expected)


def test_queries_of_a_decoder_share_no_router_with_the_keys_of_an_encoder():
    model = get_peft_model(tiny_bart(), slim(target_modules="all-linear", router_scope="block"))
    layers, decoder = slim_layers(model), "model.decoder.layers.0"
    attention, across = (
        [layers[f"{decoder}.{name}.{linear}_proj"].routers["default"] for linear in "qkv"]
        for name in ("self_attn", "encoder_attn")
    )
    assert attention[0] is attention[1] is attention[2]
    assert across[0] is not across[1] and across[1] is across[2]


def test_cluster_tables_are_made_once_for_many_evaluations(ids, monkeypatch):
    model = trained("llama")
    for layer in (m for m in model.modules() if isinstance(m, SlimLayer)):
        for _ in range(300):  # as many changes as a training has steps
            layer.slim_center["default"].add_(0)
    made = []
    monkeypatch.setattr(
        "slim_core.method.sliding_clusters.cluster_tables", lambda *state: made.append(state) or cluster_tables(*state)
    )
    for _ in range(3):
        model(ids)
    assert len(made) == 14


class LargestNew(TorchDispatchMode):
    """Remembers the size of the largest tensor that is no view of one of the given tensors."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.known, self.largest = {t.untyped_storage().data_ptr() for t in known}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in (t for t in tree_leaves(out) if isinstance(t, torch.Tensor)):
            if tensor.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("merge", ["fast", "none"])
@pytest.mark.parametrize("shape", [(16, 40), (2, 8, 40), (1, 16, 40)], ids=["tokens", "rows", "sequence"])
@pytest.mark.parametrize("scope", ["context", "token"])
def test_a_forward_allocates_nothing_of_the_size_of_experts_times_outputs(scope, shape, merge, training):
    # Fewer inputs than outputs: what is as large as the router is no matter.
    experts, channels, outputs, tokens = 30, 40, 80, 16
    config = slim_config(num_experts=experts, r=1, merge=merge, cluster_init="random", distance_scope=scope)
    layer = Linear(nn.Linear(channels, outputs), "default", config, 1, 2.0, ForwardContext(), "layer").train(training)
    layer.requires_grad_(True)
    x = torch.randn(shape)
    with LargestNew([*layer.parameters(), *layer.buffers(), x]) as seen:
        layer(x)
    assert tokens * outputs <= seen.largest < experts * outputs
