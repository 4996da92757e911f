# SPDX-License-Identifier: Apache-2.0
"""Contexts that are the same in every training text have no variance; a floor keeps small deviations near."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from slim_core import trace_routing
from slim_core.method.clusters import slide
from tests.conftest import build
from tests.method import reference
from tests.method.small import learned, logits, router_layer, slim_layers, train, trained
from tests.method.test_clusters import see, start


BEGINNING = 4  # tokens that are the same in every training text


def trained_on_one_beginning(floor: float, ids: Tensor) -> PeftModel:
    ids = ids.clone()
    ids[:, :BEGINNING] = ids[0, :BEGINNING]
    model = trained(ids, merge="none", cluster_momentum=0.5, num_clusters=8, variance_floor=floor)
    train(model, ids, 20)
    model.state_dict()  # folds in the last step
    return model


def distances_of_beginning(model: PeftModel, ids: Tensor, rounded: bool) -> Tensor:
    """(layers, BEGINNING) of a training text, whose embeddings may be rounded to bfloat16."""
    inputs = model.get_input_embeddings()(ids[:1])
    if rounded:
        inputs = inputs.bfloat16().to(inputs.dtype)
    with torch.no_grad(), trace_routing(model) as trace:
        model(inputs_embeds=inputs)
    return trace.row(0).distance[:, :BEGINNING]


def test_rounding_does_not_make_the_same_words_look_far(ids):
    far, near = (
        distances_of_beginning(model, ids, True) - distances_of_beginning(model, ids, False)
        for model in (trained_on_one_beginning(floor, ids) for floor in (0.0, 0.1))
    )
    assert far.abs().mean() > 1
    assert near.abs().mean() < 0.1 * far.abs().mean()


@pytest.mark.parametrize("floor", [0.0, 0.1, 0.5])
def test_the_distance_is_that_of_the_formula(floor, ids):
    model = trained_on_one_beginning(floor, ids)
    inputs: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0].detach()}))
        for name, layer in slim_layers(model).items()
    ]
    with torch.no_grad(), trace_routing(model) as trace:
        model(input_ids=ids[:1])
    for hook in hooks:
        hook.remove()
    config = model.peft_config["default"]
    assert trace.row(0).distance.shape[0] == len(inputs) > 0
    for index, (name, layer) in enumerate(slim_layers(model).items()):
        state = reference.layer_state(router_layer(layer, model), "default")
        means, counts = reference.sequence_contexts(inputs[name][0].double())
        slow = [
            reference.token_weights(x, state, config, mean, int(count))["distance"]
            for x, mean, count in zip(inputs[name][0].double(), means, counts, strict=True)
        ]
        assert trace.row(0).distance[index].tolist() == pytest.approx(slow, abs=1e-3)


def test_clusters_slide_as_without_a_floor():
    center, var, count = start()
    var[:, 0] = 1e-4
    x = torch.randn(30, 5, dtype=torch.float64) + 1
    spread = var.clamp(min=0.6)
    sums = see(x, center, spread)
    expected = reference.slide(center, var, x, momentum=0.8)
    slide(center, var, spread, count, None, sums, momentum=0.8)
    torch.testing.assert_close(center, expected[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(var, expected[1], rtol=1e-5, atol=1e-5)


def test_an_adapter_of_format_3_goes_on_without_a_floor(tmp_path, ids):
    model = learned(variance_floor=0.0)
    expected = logits(model, ids)
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    raw = json.loads(path.read_text())
    del raw["variance_floor"]
    path.write_text(json.dumps(raw | {"format_version": 3}))
    again = PeftModel.from_pretrained(build("llama"), tmp_path)
    assert torch.equal(logits(again, ids), expected)
    assert not torch.equal(logits(learned(variance_floor=0.9), ids), expected)
    again.save_pretrained(tmp_path / "again")
    kept = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert (kept["format_version"], kept["variance_floor"]) == (3, 0.0)
