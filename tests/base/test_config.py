# SPDX-License-Identifier: Apache-2.0
"""A base's config from outside: what would take minutes to build is refused before, and no other code is asked for."""

from __future__ import annotations

import json
import time

import pytest
from transformers import AutoConfig

from slim_core.adapters import AdapterError, base_from_config
from slim_core.base import config as base_config
from slim_core.base.config import BaseConfigError, build_empty, read_base_config
from tests.conftest import SIZES


LLAMA = {"model_type": "llama", **SIZES}


def write(folder, **fields):
    (folder / "config.json").write_text(json.dumps(LLAMA | fields))
    return folder


HUGE = {
    "layers": ({"num_hidden_layers": 1_000_000}, "`num_hidden_layers` in its config is 1,000,000; at most 1,000"),
    "more": ({"num_hidden_layers": 10**400}, "a number of more than 30 digits; at most 1,000"),
    "experts": ({"model_type": "mixtral", "num_local_experts": 10**6}, "`num_local_experts` .* at most 4,096"),
    "labels": ({"num_labels": 10**9}, "`num_labels` .* at most 100,000"),
    "inner": ({"text_config": {"n_layer": 10**9}}, r"`text_config\.n_layer` in its config"),
    "width": ({"vocab_size": 10**18}, "`vocab_size` in its config is 1,000,000,000,000,000,000"),
    "negative": ({"num_hidden_layers": -1}, "`num_hidden_layers` in its config is -1; it must be at least 1"),
    "no layers": ({"num_hidden_layers": 0}, "`num_hidden_layers` in its config is 0; it must be at least 1"),
    "repeated": (
        {"model_type": "gpt_neo", "num_layers": 2, "attention_types": [[["global"], 10**8]]},
        "`attention_types` in its config is 100,000,000; at most 1,048,576",
    ),
    "no tokens": ({"max_position_embeddings": -5}, "`max_position_embeddings` in its config is -5"),
    "nothing": ({"hidden_size": 0}, "`hidden_size` in its config is 0; it must be at least 1"),
}


@pytest.mark.parametrize(("fields", "words"), HUGE.values(), ids=HUGE)
def test_numbers_out_of_range_are_refused_before_anything_is_built(fields, words, tmp_path):
    write(tmp_path, **fields)
    begin = time.monotonic()
    with pytest.raises(BaseConfigError, match=words):
        read_base_config(tmp_path)
    with pytest.raises(AdapterError, match=words) as error:
        base_from_config(str(tmp_path))
    assert str(error.value).startswith("The base model '") and str(error.value).endswith(".")
    assert time.monotonic() - begin < 5


def test_what_multiplies_while_it_is_built_is_ended(monkeypatch):
    config = AutoConfig.for_model("llama", **SIZES | {"num_hidden_layers": 40})
    assert build_empty(config).config.num_hidden_layers == 40
    monkeypatch.setattr(base_config, "BUILD_CALLS", 200)
    with pytest.raises(BaseConfigError, match="more layers and experts together than any model has"):
        build_empty(config)


def test_no_kernels_of_another_repository(tmp_path):
    names = ("_attn_implementation", "attn_implementation", "_attn_implementation_internal", "experts_implementation")
    write(tmp_path, **dict.fromkeys(names, "evil/repo"))
    config = read_base_config(tmp_path)
    assert config._attn_implementation is None and config._experts_implementation is None
    assert base_from_config(str(tmp_path)).family == "llama"
