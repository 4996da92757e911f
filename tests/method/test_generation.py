# SPDX-License-Identifier: Apache-2.0
"""`generate` in all its ways says what the same way says when it reads everything again for each token."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers import Cache, GenerationConfig
from transformers.cache_utils import QuantizedLayer

from slim_core.peft_tools import adapter_rows, trace_routing
from tests.conftest import TINY, build, needs_cuda
from tests.method import reference
from tests.method.small import learned, slim, slim_layers, small_base
from tests.method.test_sequence_state import TURNS, learned_t5


FAMILIES = [*TINY, "opt"]
WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 2.0},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampled beams": {"do_sample": True, "num_beams": 2, "temperature": 2.0},
    "several beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 3},
    "several samples": {"do_sample": True, "num_return_sequences": 3, "temperature": 2.0},
}


@pytest.fixture(autouse=True)
def _no_end_of_text() -> Iterator[None]:
    with torch.no_grad():
        yield


def say(model: nn.Module, ids: Tensor, tokens: int = 12, **options) -> Tensor:
    torch.manual_seed(4)
    return model.generate(input_ids=ids, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0, **options)


def talkative(family: str = "llama", **changes):
    """A model that answers something else where the gate is another."""
    return learned(family, **({"alpha": 64.0} | TURNS | changes))


@pytest.mark.parametrize(
    ("family", "way"),
    [
        # Beams reorder a cache, which is what families might do in their own ways.
        pytest.param(f, w, marks=() if f == "llama" or w in ("greedy", "beams") else pytest.mark.nightly)
        for f in FAMILIES
        for w in WAYS
    ],
)
def test_a_cache_changes_nothing_that_is_said(family, way, ids):
    model = talkative(family)
    said = say(model, ids[:, :8], **WAYS[way])
    assert torch.equal(said, say(model, ids[:, :8], **WAYS[way], use_cache=False))
    with model.disable_adapter():
        assert not torch.equal(said, say(model, ids[:, :8], **WAYS[way]))


@pytest.mark.parametrize("way", WAYS)
def test_the_state_of_a_recurrent_model_changes_nothing_that_is_said(way, ids):
    model = talkative("mamba")
    said = say(model, ids[:, :8], **WAYS[way])
    assert torch.equal(said, say(model, ids[:, :8], **WAYS[way], use_cache=False))
    with model.disable_adapter():
        assert not torch.equal(said, say(model, ids[:, :8], **WAYS[way]))


def with_padding(ids):
    """(B, 8) prompts; the same behind three ids that are padding, and the mask that says so, (B, 11) each."""
    prompt = ids[:, :8]
    padded = torch.cat([ids[:, 8:11], prompt], 1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    return prompt, padded, mask


@pytest.mark.parametrize("way", WAYS)
def test_left_padding_changes_nothing_that_is_said(way, ids):
    model, (prompt, padded, mask) = talkative(), with_padding(ids)
    said = say(model, padded, attention_mask=mask, **WAYS[way])
    assert torch.equal(said[:, 3:], say(model, prompt, **WAYS[way]))


@pytest.mark.parametrize("way", WAYS)
def test_rows_of_one_batch_say_what_each_says_alone(way, ids):
    model = talkative(merge="none")
    torch.manual_seed(6)
    model.add_adapter("other", slim(target_modules="all-linear", alpha=64.0, merge="none"))
    model.eval()
    names = ["default", "__base__", "other"]
    said = say(model, ids, adapter_names=names, **WAYS[way])
    again = say(model, ids, adapter_names=names, use_cache=False, **WAYS[way])
    assert torch.equal(said, again)
    if not WAYS[way]["do_sample"]:
        several = WAYS[way].get("num_return_sequences", 1)
        for row, name in enumerate(names):
            alone = say(model, ids[row : row + 1], adapter_names=[name], **WAYS[way])
            assert torch.equal(said[row * several : (row + 1) * several], alone)


# -- assisted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_an_assistant_changes_nothing_that_is_said(family, ids):
    model, prompt = talkative(family), ids[:1, :8]
    expected = say(model, prompt, do_sample=False, use_cache=False)
    assert torch.equal(say(model, prompt, do_sample=False, assistant_model=small_base(family, seed=1)), expected)


def test_the_base_itself_may_assist(ids):
    model, prompt = talkative(alpha=1.0), ids[:1, :8]
    expected = say(model, prompt, tokens=30, do_sample=False, use_cache=False)
    assert torch.equal(say(model, prompt, tokens=30, do_sample=False, assistant_model=build("llama")), expected)


@pytest.mark.parametrize("guesses", [None, 5], ids=["as it is", "always five"])
def test_an_adapted_model_may_assist(guesses, ids):
    model, prompt = talkative(), ids[:1, :8]
    expected = say(model, prompt, tokens=20, do_sample=False, use_cache=False)
    assistant = talkative(alpha=48.0).get_base_model()
    if guesses:
        settings = assistant.generation_config
        settings.num_assistant_tokens, settings.num_assistant_tokens_schedule = guesses, "constant"
        settings.assistant_confidence_threshold = 0.0
    assert torch.equal(say(model, prompt, tokens=20, do_sample=False, assistant_model=assistant), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_looking_candidates_up_in_the_prompt_changes_nothing_that_is_said(family, ids):
    model, prompt = talkative(family), ids[:1, :4].repeat(1, 3)
    expected = say(model, prompt, tokens=30, do_sample=False, use_cache=False)
    assert torch.equal(say(model, prompt, tokens=30, do_sample=False, prompt_lookup_num_tokens=3), expected)


# -- other caches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["static", "dynamic", pytest.param("offloaded", marks=needs_cuda)])
def test_every_kind_of_cache_changes_nothing_that_is_said(kind, way, ids):
    device = "cuda" if kind == "offloaded" else "cpu"
    model, prompt = talkative().to(device), ids[:, :8].to(device)
    said = say(model, prompt, cache_implementation=kind, **WAYS[way])
    assert torch.equal(said, say(model, prompt, use_cache=False, **WAYS[way]))


class _Unrounded(QuantizedLayer):
    """Moves its oldest keys and values to another place, as a quantised layer does, and rounds nothing."""

    def __init__(self) -> None:
        super().__init__(residual_length=4)

    def _quantize(self, tensor: Tensor, axis: int) -> Tensor:
        return tensor.clone()

    def _dequantize(self, tensor: Tensor) -> Tensor:
        return tensor


@pytest.mark.parametrize("way", WAYS)
def test_a_quantised_cache_changes_nothing_but_by_its_rounding(way, ids):
    model, prompt = talkative(), ids[:, :8]
    cache = Cache(layers=[_Unrounded() for _ in range(model.config.num_hidden_layers)])
    said = say(model, prompt, past_key_values=cache, **WAYS[way])
    assert torch.equal(said, say(model, prompt, use_cache=False, **WAYS[way]))


@torch.no_grad()
def test_contexts_beside_a_quantised_cache_are_those_of_what_the_linears_read(ids):
    model = talkative(turn_opening=None)
    read: dict[str, list[Tensor]] = {name: [] for name in slim_layers(model)}
    for name, layer in slim_layers(model).items():
        layer.register_forward_pre_hook(lambda _, args, name=name: read[name].append(args[0].clone()))
    with trace_routing(model) as trace:
        say(model, ids, do_sample=False, cache_implementation="quantized", cache_config={"backend": "fp8"})
    for row in trace.rows:
        routing = trace.row(row)
        for place, name in enumerate(routing.modules):
            layer = slim_layers(model)[name]
            state, config = reference.layer_state(layer, "default"), layer.slim_config["default"]
            x = torch.cat(read[name], 1)[row]
            means, counts = reference.sequence_contexts(x)
            assert len(x) == routing.distance.shape[1] == 12 + 11
            for t in (0, 11, 12, 17, 22):
                expected = reference.token_weights(x[t].double(), state, config, means[t], int(counts[t]))
                assert routing.distance[place, t].item() == pytest.approx(expected["distance"], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_static_cache_knows_padding(family, ids):
    model, (prompt, padded, mask) = talkative(family), with_padding(ids)
    said = say(model, padded, attention_mask=mask, do_sample=False, cache_implementation="static")
    assert torch.equal(said[:, 3:], say(model, prompt, do_sample=False, use_cache=False))


def test_a_conversation_goes_on_with_its_cache(ids):
    model, cache, text = talkative(), None, ids[:1, :6]
    for turn in range(3):
        text = torch.cat([text, torch.tensor([[5, 7]]), ids[1:2, 2 * turn : 2 * turn + 3]], 1)
        expected = say(model, text, tokens=4, do_sample=False, use_cache=False)
        out = say(model, text, tokens=4, do_sample=False, past_key_values=cache, return_dict_in_generate=True)
        assert torch.equal(out.sequences, expected)
        text, cache = out.sequences, out.past_key_values


def test_a_prompt_that_is_read_in_chunks_changes_nothing_that_is_said(ids):
    model = talkative()
    config = GenerationConfig(max_new_tokens=6, min_new_tokens=6, pad_token_id=0, prefill_chunk_size=3)
    said = model.generate(input_ids=ids, generation_config=config)
    assert torch.equal(said, say(model, ids, tokens=6, do_sample=False, use_cache=False))


@pytest.mark.parametrize("way", WAYS)
def test_an_encoder_decoder_says_the_same_with_and_without_a_cache(way, ids):
    model = learned_t5(ids)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    said = say(model, ids, attention_mask=mask, **WAYS[way])
    assert torch.equal(said, say(model, ids, attention_mask=mask, use_cache=False, **WAYS[way]))
    with model.disable_adapter():
        assert not torch.equal(said, say(model, ids, attention_mask=mask, **WAYS[way]))


@pytest.mark.parametrize("way", WAYS)
def test_padding_of_an_encoder_changes_nothing_that_is_said(way, ids):
    model, (prompt, padded, mask) = learned_t5(ids), with_padding(ids)
    assert torch.equal(say(model, padded, attention_mask=mask, **WAYS[way]), say(model, prompt, **WAYS[way]))


def test_rows_set_once_are_those_of_a_generation(ids):
    model = talkative(merge="none")
    with adapter_rows(model, ["default", "__base__", "default"]):
        said = say(model.get_base_model(), ids, do_sample=False)
    expected = say(model, ids, do_sample=False, adapter_names=["default", "__base__", "default"])
    assert torch.equal(said, expected)
