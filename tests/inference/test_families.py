# SPDX-License-Identifier: Apache-2.0
"""Every family of causal language models that people bring, as a tiny model on disk with LoRA and SLIM on top."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from slim_core.base import loading
from slim_core.base.estimate import ROWS, empty_model, estimate
from slim_core.base.families import check_family
from slim_core.base.loading import plan
from slim_core.demo.chat import train_tokenizer
from slim_core.inference import BaseChoice, EngineError, Row, Sampling, cache, load_engine
from tests.adapters.families import FAMILIES, SMALL
from tests.conftest import SIZES, require_stories
from tests.inference.conftest import LONGER, QUESTION, SHORT, TEXTS, last, logits_of, rows, save_lora, save_slim


# Windows smaller than the prompts, and the other ways in which some families see positions.
CONFIGS = {
    **{name: (name, sizes) for name, sizes in FAMILIES.items()},
    "mistral": ("mistral", SIZES | {"sliding_window": 8}),
    "qwen2": ("qwen2", SIZES | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "gemma2": ("gemma2", SIZES | {"sliding_window": 8}),
    "falcon-alibi": ("falcon", SMALL | {"alibi": True}),
    "qwen2_moe": (
        "qwen2_moe",
        SIZES
        | {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        | {"shared_expert_intermediate_size": 16, "decoder_sparse_step": 1},
    ),
}
TOKENS = 12
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
# PEFT would adapt the bare parameters of these experts too, which no row can.
DENSE = {"mixtral": ATTENTION, "qwen3_moe": ATTENTION}


def tiny(name: str) -> PreTrainedModel:
    """Its weights are large, so that its answers depend on what it reads."""
    model_type, sizes = CONFIGS[name]
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, **(sizes | ends | {"vocab_size": len(train_tokenizer(TEXTS))}))
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3 if parameter.dim() > 1 else 1)
    return model


def save(model: PreTrainedModel, root: Path, targets: str | list[str] = "all-linear") -> dict[str, Path]:
    folders = {kind: root / kind for kind in ("base", "lora", "slim")}
    model.save_pretrained(folders["base"])
    train_tokenizer(TEXTS).save_pretrained(folders["base"])
    save_lora(folders["lora"], model, target_modules=targets)
    save_slim(folders["slim"], model, target_modules=targets)
    return folders


def assert_rows_as_alone(engine, monkeypatch, near=3e-5):
    """Base, LoRA and SLIM with a prompt of another length each, together and each alone."""
    asked = rows(QUESTION, LONGER, SHORT)
    together = logits_of(engine, asked, monkeypatch, TOKENS)
    for index, row in enumerate(asked):
        alone = logits_of(engine, [row], monkeypatch, TOKENS)
        assert len(alone) > 2
        for step, values in enumerate(alone):
            torch.testing.assert_close(together[step][index], values[0], atol=near, rtol=1e-5)
            assert together[step][index].argmax() == values[0].argmax()
    first = together[0]
    assert not torch.allclose(first[0], first[1], atol=1e-2) and not torch.allclose(first[0], first[2], atol=1e-2)


@pytest.mark.parametrize("name", CONFIGS)
def test_each_row_is_what_it_is_alone_and_a_prompt_in_pieces_is_the_prompt_at_once(name, tmp_path, monkeypatch):
    engine = load_engine(**save(tiny(name), tmp_path, DENSE.get(name, "all-linear")), device="cpu")
    assert engine.info.dtype == "float32"
    assert_rows_as_alone(engine, monkeypatch)
    asked = rows(QUESTION, LONGER, SHORT)
    whole = logits_of(engine, asked, monkeypatch, 4)
    monkeypatch.setattr(cache, "PIECE", 5)
    for actual, expected in zip(logits_of(engine, asked, monkeypatch, 4), whole, strict=True):
        assert actual.keys() == expected.keys()
        for row in actual:
            torch.testing.assert_close(actual[row], expected[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_estimate_is_what_is_loaded(name, tmp_path):
    model = tiny(name)
    need = estimate(empty_model(model.config, torch.float32), torch.float32)
    assert need.parameters == model.num_parameters() and need.weights == model.get_memory_footprint()
    assert 0 < need.answers < need.total


def test_layers_of_different_widths_are_each_measured():
    sizes = SIZES | {"global_head_dim": 32, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 99}
    layers = ["sliding_attention", "full_attention"]
    config = AutoConfig.for_model("gemma4_text", **sizes, layer_types=layers, sliding_window=16)
    need = estimate(empty_model(config, torch.float32), torch.float32)
    (near, far), heads = (16 * 8, need.tokens * 32), SIZES["num_key_value_heads"]
    work = need.tokens * (3 * 48 + 6 * 32) * 4 + 4 * 99 * 4
    assert need.answers == ROWS * (2 * (near + far) * heads * 4 + work)


# The others are for the nightly run.
KINDS = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
REST = [kind for number, kind in enumerate(KINDS) if number % 8]


@pytest.fixture
def plenty(monkeypatch):
    monkeypatch.setattr(loading, "device_memory", lambda device: (None, None))


@pytest.mark.parametrize("model_type", [*KINDS[::8], *[pytest.param(k, marks=pytest.mark.nightly) for k in REST]])
def test_every_kind_is_measured_or_refused_in_one_sentence(model_type, plenty):
    try:
        config = AutoConfig.for_model(model_type, num_hidden_layers=2)
    except Exception as error:
        pytest.skip(f"no config of two layers: {type(error).__name__}")
    try:
        need = plan(BaseChoice("theirs"), config, "cpu").need
    except EngineError as error:
        assert str(error).endswith(".") and "\n" not in str(error)
    else:
        assert need.weights > 0 and need.answers > 0


@pytest.mark.parametrize("model_type", ["blt", "musicgen"])
def test_a_kind_whose_size_cannot_be_told_is_a_sentence(model_type, plenty):
    with pytest.raises(
        EngineError, match=rf"theirs \({model_type}\) is a type of model whose size cannot be determined"
    ):
        plan(BaseChoice("theirs"), AutoConfig.for_model(model_type), "cpu")


@pytest.mark.real_data
def test_the_real_small_model(tmp_path, monkeypatch):
    path = require_stories()
    model = AutoModelForCausalLM.from_pretrained(path)
    save_lora(tmp_path / "lora", model)
    save_slim(tmp_path / "slim", model)
    engine = load_engine(path, lora=tmp_path / "lora", slim=tmp_path / "slim", device="cpu")
    assert not engine.info.chat_template
    # Its logits are more than ten times as large as those above.
    assert_rows_as_alone(engine, monkeypatch, near=1e-4)
    assert last(engine, [Row("base", QUESTION)], Sampling(max_new_tokens=20)).rows[0].tokens > 5


@pytest.mark.parametrize(
    ("model_type", "sizes", "sentence"),
    [
        ("bert", {"intermediate_size": 48}, "reads in both directions"),
        ("openai-gpt", {}, "takes no past_key_values"),
        ("mamba", {}, "keeps a recurrent state"),
        ("t5", {}, "No causal language model can be built"),
    ],
)
def test_a_family_that_cannot_answer_here_is_a_sentence(model_type, sizes, sentence):
    with pytest.raises(EngineError, match=sentence):
        check_family(empty_model(AutoConfig.for_model(model_type, **(SMALL | sizes)), torch.float32), "theirs")
