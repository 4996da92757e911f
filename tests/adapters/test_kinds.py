# SPDX-License-Identifier: Apache-2.0
"""Configurations as they are found in the wild: which become rows, and what the others are told."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

from slim_core.adapters import AdapterError
from slim_core.adapters.configs import read_config
from slim_core.adapters.kinds import CONVERTIBLE, OTHER_PARTS, PROMPTS
from slim_core.outside.files import CONFIG
from slim_core.outside.limits import DEFAULT
from slim_core.outside.strict_json import read_object
from tests.conftest import real_data


# Of method comparisons that PEFT publishes, under Apache-2.0.
CONFIGS = Path(__file__).parent / "configs"


def read(path: Path):
    return read_config(read_object(path.read_bytes(), CONFIG, DEFAULT.json_depth), DEFAULT)


ROWS = {
    "lora": {"r": 32, "lora_alpha": 64, "target_modules": None, "use_rslora": False},
    "mica": {"r": 32, "lora_alpha": 64, "target_modules": None},
    "mlp": {"r": 10, "lora_alpha": 20, "target_modules": {"gate_proj", "up_proj", "down_proj"}},
    "rslora": {"r": 64, "use_rslora": True},
    "dora": {"use_dora": True},
}
OTHERS = {
    "bdlora": "`use_bdlora` is .*: this is a BD-LoRA, .*; train without use_bdlora",
    "ia3": "`peft_type` is IA3, .* train it again as LORA or SLIM",
    "kasa": "`kasa_config` is .*: this is a KaSA, .*; train a plain LoRA",
    "prompt-tuning": "`peft_type` is PROMPT_TUNING, .* works on the prompt",
    "vera": r"`peft_type` is VERA, .* convert it with `peft\.save_as_lora`",
}


@pytest.mark.parametrize("name", ROWS)
def test_a_real_lora_becomes_a_row(name):
    lora = read(CONFIGS / f"{name}.json")
    assert {field: getattr(lora.config, field) for field in ROWS[name]} == ROWS[name]


@pytest.mark.parametrize("name", OTHERS)
def test_a_real_config_of_another_kind_is_told_what_can_be_done(name):
    with pytest.raises(AdapterError, match=OTHERS[name]):
        read(CONFIGS / f"{name}.json")


def test_every_copy_is_tried():
    assert {path.stem for path in CONFIGS.iterdir()} == {*ROWS, *OTHERS}


# PEFT's own kinds whose rows the methods to compare with compute.
ROWS_OF_OTHERS = {"OFT"}


@pytest.mark.parametrize("kind", sorted(set(PeftType.__members__) - {"LORA", *ROWS_OF_OTHERS}))
def test_every_kind_of_peft_is_named(kind):
    with pytest.raises(AdapterError, match=f"`peft_type` is {kind}, but only LORA,.* SLIM .*;.*(train|convert|LORA)"):
        read_config({"peft_type": kind}, DEFAULT)


def test_the_convertible_kinds_are_those_that_peft_converts():
    """Kinds whose layers define `supports_lora_conversion` beyond the default, which says no."""
    convertible = set()
    for kind, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items():
        try:
            source = inspect.getsource(importlib.import_module(tuner.__module__.rpartition(".")[0] + ".layer"))
        except ModuleNotFoundError:
            continue
        if "def supports_lora_conversion" in source:
            convertible.add(str(getattr(kind, "value", kind)))
    # A tuner that is itself a LoRA inherits it.
    assert convertible - {"LORA", "XLORA", "ADALORA"} == CONVERTIBLE


def test_the_lists_name_kinds_that_exist():
    assert set(PeftType.__members__) >= CONVERTIBLE | OTHER_PARTS | PROMPTS


# A field that is unknown here, and whether it says nothing.
UNKNOWN = {
    "null": ("new_method_config", None, True),
    "false": ("use_new_method", False, True),
    "empty text": ("new_method", "", True),
    "empty list": ("new_modules", [], True),
    "empty object": ("new_pattern", {}, True),
    "a precision": ("lora_dtype", "bfloat16", True),
    "a learning rate": ("lorap_emb_lr", 1e-6, True),
    "a ratio": ("lorap_lr_ratio", 16.0, True),
    "an object for a precision": ("lora_dtype", {"a": 1}, False),
    "true": ("use_new_method", True, False),
    "a number": ("new_scale", 2.0, False),
    "zero": ("new_scale", 0, False),
    "one": ("new_scale", 1, False),
    "text": ("new_method", "none of your business", False),
    "object": ("new_pattern", {"q_proj": 2}, False),
    "a list": ("new_modules", ["q_proj"], False),
}


@pytest.mark.parametrize("kind", ["LORA", "SLIM"])
@pytest.mark.parametrize(("field", "value", "says_nothing"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_field_is_ignored_and_listed_or_refused_with_its_value(kind, field, value, says_nothing):
    raw = {"peft_type": kind, "r": 4, "target_modules": ["q_proj"], field: value}
    raw |= {"lora_alpha": 8} if kind == "LORA" else {"alpha": 8}
    if says_nothing:
        assert read_config(raw, DEFAULT).warnings == (
            f"Unknown fields that cannot change an answer were ignored: {field!r}.",
        )
        return
    with pytest.raises(AdapterError, match=f"'{field}' is unknown and set to {re.escape(repr(value))}, which .*;"):
        read_config(raw, DEFAULT)


@pytest.mark.real_data
def test_all_real_configs_are_rows_or_told_why_not():
    paths = sorted(real_data("peft-configs").glob("*.json"))
    rows = set()
    for path in paths:
        try:
            read(path)
            rows.add(path.name.partition("__")[0])
        except AdapterError as error:
            assert re.match(r"adapter_config\.json: `\w+` is .*; .*(train|convert|LORA)", str(error)), error
    assert len(paths) == 70 and rows == {"lora"}
