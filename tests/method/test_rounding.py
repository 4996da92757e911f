# SPDX-License-Identifier: Apache-2.0
"""How far float32 is from the formulas in float64, and where the distance between them comes from."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from slim_core.demo.verify import missing
from slim_core.method.gate import Yielding
from slim_core.method.routing import VARIANCE_EPS, Router, cluster_tables, route
from slim_core.paths import DEMO
from tests.method import reference
from tests.method.small import router_layer, slim_layers


STRENGTH, CHANNELS, CONTEXTS = 4.0, 192, 60


def routed(mean: torch.Tensor, center: torch.Tensor, variance: float, known: float):
    """Contexts (T, C) at one cluster in the dtype of `mean`, the gate's edge at the distance `known`."""
    dtype = mean.dtype
    return route(
        torch.ones_like(mean),
        cluster_tables(center.to(dtype), torch.full_like(center, variance).to(dtype)),
        Router(torch.zeros(3, CHANNELS, dtype=dtype), torch.zeros(3, dtype=dtype)),
        num_experts=2,
        top_k=2,
        statistic="rms",
        yielding=Yielding("gate", STRENGTH, torch.tensor(known, dtype=dtype)),
        context=mean,
    )


# A cluster of contexts that are the same in every training text has no variance: its spread is the floor of 1e-3, and
# such a context lies on its very centre, at the distance -1, which then is the reference too.
@pytest.mark.parametrize(
    ("variance", "offset", "known", "least"),
    [(1.0, 0.5, -0.5, 0.0), (1e-2, 0.05, -0.5, 0.0), (0.0, 0.0, -1.0, 1e-4)],
    ids=["wide", "narrow", "collapsed"],
)
def test_the_gate_repeats_rounding_as_often_as_strength_over_spread(variance, offset, known, least):
    tokens = 2 * torch.randn(CONTEXTS, 3, CHANNELS)
    exact = tokens.double().sum(1) / 3
    center = (tokens.sum(1) / 3)[:1].repeat(2, 1)
    center[1] += 100  # far away
    differences = []
    for i in range(CONTEXTS):
        # The context that training saw, again: in float32 to the bit, in float64 but for rounding.
        own = torch.stack([tokens[i].sum(0) / 3, center[1]])
        low = routed(own[:1] + offset, own, variance, known)
        high = routed(exact[i : i + 1] + offset, own.double(), variance, known)
        spread = (variance + VARIANCE_EPS) ** 0.5
        rounding = 4 * torch.finfo(torch.float32).eps * float(own[0].abs().max() + offset) / spread
        assert abs(float(low.distance) - float(high.distance)) <= rounding + 1e-6
        assert abs(float(low.gate) - float(high.gate)) <= STRENGTH * (rounding + 1e-6)
        differences.append(abs(float(low.gate) - float(high.gate)))
    assert max(differences) >= least
    if variance:
        assert max(differences) < 1e-4


PROMPTS = {
    "own form": ["What is the capital of Canada?"],
    "trained form in a second turn": ["2 + 3 = ?", "Please answer the following question with true or false"],
}


@pytest.fixture(scope="module")
def demo():
    base = AutoModelForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32)
    return PeftModel.from_pretrained(base, DEMO / "slim").eval()


@pytest.fixture(scope="module")
def in_float64(demo):
    """The same base in float64, with SLIM as `reference` writes it out. Takes (1, T) ids, gives (T, V) logits."""
    model = copy.deepcopy(demo).double()
    own = slim_layers(demo)

    @torch.no_grad()
    def run(ids: torch.Tensor, opening: tuple[int, ...]) -> torch.Tensor:
        below, seen = reference.Below(), {}
        for name, layer in slim_layers(model).items():
            mine = own[name]
            owner = router_layer(mine, demo)
            state = reference.layer_state(owner, "default") | {
                key: value for key, value in reference.layer_state(mine, "default").items() if "router" not in key
            }
            seen[name] = (mine, owner, state)

            def forward(x, layer=layer, name=name):
                mine, owner, state = seen[name]
                contexts = reference.sequence_contexts(x[0], ids[0].tolist(), opening=opening)
                config, scaling = mine.slim_config["default"], mine.scaling["default"]
                added = reference.slim_delta(x[0], state, config, scaling, contexts, below, owner)
                return layer.base_layer(x) + added

            layer.forward = forward
        return model.get_base_model()(ids).logits[0]

    return run


@pytest.mark.skipif(bool(missing(DEMO)), reason="the demo is not here: build it with python -m slim_core demo build")
@pytest.mark.parametrize("turns", PROMPTS.values(), ids=PROMPTS)
def test_the_demo_in_float32_says_what_the_formulas_say_in_float64(turns, demo, in_float64):
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    chat = [{"role": role, "content": text} for text in turns for role, text in (("user", text), ("assistant", "5"))]
    ids = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        logits = demo(ids).logits[0]
    opening = tuple(demo.peft_config["default"].turn_opening)
    # Of 607 prompts most are within 1.5e-5 of it, and all within 6e-5.
    torch.testing.assert_close(logits.double(), in_float64(ids, opening), rtol=0, atol=1e-4)
