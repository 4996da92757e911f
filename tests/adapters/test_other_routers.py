# SPDX-License-Identifier: Apache-2.0
"""What the trace records of other methods' routers: the weights that their formulas give, without padding."""

from __future__ import annotations

import pytest
import torch

from slim_core.adapters import Folder, attach, describe_base, open_adapter
from slim_core.peft_tools import RowScopes, adapter_rows, trace_routing
from tests.baselines.reference import best, route
from tests.baselines.small import BLOCKS, IDS, small_base, stirred


PADDING = 3
# How many experts each keeps for a token, and the places that have a router.
ROUTED = {"loramoe": (4, 3 * BLOCKS), "mixlora": (2, BLOCKS), "mola": (2, 7 * BLOCKS)}


def attached(model, tmp_path, kind):
    stirred(kind).save_pretrained(tmp_path / kind)
    adapter = open_adapter(Folder(tmp_path / kind), describe_base(model))
    model = attach(model, adapter, f"row-{kind}").eval()
    adapter.delete()
    return model


@torch.no_grad()
@pytest.mark.parametrize("kind", ROUTED)
def test_the_trace_holds_what_the_formulas_say(kind, tmp_path):
    kept, places = ROUTED[kind]
    model = attached(attached(small_base(), tmp_path, "slim"), tmp_path, kind)
    inputs = {}
    layers = {m.place.name: m for m in stirred(kind).modules() if getattr(m, "place", None) is not None}
    base = model.get_base_model()
    for name in layers:
        module = base.get_submodule(name)
        module.register_forward_pre_hook(lambda m, args, name=name: inputs.__setitem__(name, args[0].clone()))
    ids = torch.cat([torch.zeros(3, PADDING, dtype=torch.long), IDS], 1)
    mask = torch.ones_like(ids)
    mask[1, :PADDING] = 0
    with adapter_rows(model, ["row-slim", f"row-{kind}", "__base__"]), trace_routing(model) as trace:
        model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    assert trace.rows == [0, 1]
    routing = trace.row(1)
    assert len(routing.modules) == places and routing.weights.shape[1:] == (IDS.shape[1], routing.num_experts)
    for i, name in enumerate(routing.modules):
        router = layers[name].tensors("default")["router"]
        for t in (0, IDS.shape[1] - 1):
            weights = best(route(router, inputs[name][1, PADDING + t]), min(kept, len(router)))
            expected = torch.tensor([weights.get(e, 0.0) for e in range(routing.num_experts)])
            torch.testing.assert_close(routing.weights[i, t], expected, rtol=1e-3, atol=1e-4)
    assert routing.identity.max() < 1e-5 and (routing.cluster == -1).all()
    assert (routing.gate == 1).all() and not routing.distance.any() and not routing.reference.any()
    # SLIM's own record beside it is of its own experts.
    assert trace.row(0).num_experts < trace.row(0).weights.shape[2] and (trace.row(0).cluster >= 0).all()


def test_what_cannot_tell_padding_records_nothing(tmp_path):
    model = attached(small_base(), tmp_path, "mola")
    assert RowScopes(model).traceable == set()
    beside = attached(attached(small_base(), tmp_path, "slim"), tmp_path, "disel")
    assert RowScopes(beside).traceable == {"row-slim"}, "DISeL has no router"
