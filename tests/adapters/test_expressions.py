# SPDX-License-Identifier: Apache-2.0
"""Expressions in configs: never run, and what they chose is read off the tensors."""

from __future__ import annotations

import re
import shutil
import time

import pytest

from slim_core.adapters import Folder, attach, check, describe_base, open_adapter
from slim_core.adapters.expressions import without_expressions
from slim_core.adapters.layout import PREFIX
from slim_core.outside.errors import AdapterError
from slim_core.outside.header import TensorInfo
from slim_core.outside.limits import DEFAULT
from tests.adapters.small import config, lora, save, save_slim
from tests.adapters.test_good_inputs import same_as_peft
from tests.conftest import build


# As Unsloth writes it for models that see and speak.
UNSLOTH = (
    r"(?:.*?(?:vision|image|visual|patch|language|text).*?(?:self_attn|attention|attn|mlp).*?(?:q_proj|v_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|v_proj)))"
)
SLOW = "(a+)+(.*)*(x+x+)+z$"
ALL = {f"model.layers.{i}.self_attn.{name}" for i in range(2) for name in ("q_proj", "v_proj")}

# A LoRA on q_proj and v_proj with an expression, and the modules that it then names.
SAME_AS_PEFT = {
    "Unsloth": ({"target_modules": UNSLOTH}, ALL),
    "alternatives": ({"target_modules": r".*\.(q_proj|v_proj)"}, ALL),
    "one block": ({"target_modules": r"model\.layers\.1\..*v_proj"}, {"model.layers.1.self_attn.v_proj"}),
    "excluded": (
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*layers\.0\..*"},
        {name for name in ALL if ".1." in name},
    ),
    "excluded from an expression": (
        {"target_modules": r".*(q|v)_proj", "exclude_modules": r".*\.v_proj"},
        {name for name in ALL if "q_proj" in name},
    ),
    "ranks": (
        {"rank_pattern": {r".*layers\.0\..*q_proj": 2, "v_proj": 3, r"^model.*q_proj$": 5}},
        {"q_proj", "v_proj"},
    ),
    "an escaped alpha": ({"alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 3}}, {"q_proj", "v_proj"}),
    "an anchored alpha": (
        {"alpha_pattern": {r"^model\.layers\.0\.self_attn\.q_proj$": 3, r".*\.v_proj": 2}},
        {"q_proj", "v_proj"},
    ),
}


@pytest.mark.parametrize(("changes", "named"), SAME_AS_PEFT.values(), ids=SAME_AS_PEFT)
def test_an_expression_answers_as_in_peft(changes, named, tmp_path):
    save(lora(**changes), tmp_path)
    same_as_peft(tmp_path, lambda: build("llama"))
    adapter = open_adapter(Folder(tmp_path), describe_base(build("llama")))
    assert adapter.config.target_modules == named and adapter.config.exclude_modules is None
    model = attach(build("llama"), adapter, "theirs")
    attached = model.peft_config["theirs"]
    assert set(attached.target_modules) == named and not attached.exclude_modules
    assert all(re.fullmatch(r"[\w.-]+", key) for key in (*attached.rank_pattern, *attached.alpha_pattern))


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern"])
@pytest.mark.parametrize("text", [SLOW, "(", "(?P<x", r"\1", "*", ".*"], ids=repr)
@pytest.mark.parametrize("base", [True, False])
def test_an_expression_is_never_run(base, text, field, good_lora, tmp_path, monkeypatch):
    """Neither a slow one nor one that cannot be compiled is noticed."""
    folder = shutil.copytree(good_lora, tmp_path / "lora")
    config(**{field: {text: 4} if field == "rank_pattern" else text})(folder)
    start = time.perf_counter()
    *_, last = check(Folder(folder), describe_base(build("llama")) if base else None)
    assert last.state == "passed" and time.perf_counter() - start < 5, last.sentence


def test_a_slim_adapter_with_expressions(tmp_path):
    save_slim(tmp_path, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 5})
    config(target_modules=".*(q|v)_proj", rank_pattern={"v.*": 5})(tmp_path)
    adapter = open_adapter(Folder(tmp_path), describe_base(build("llama")))
    assert set(adapter.config.target_modules) == set(adapter.targets) == ALL
    assert adapter.config.rank_pattern["v_proj"] == 5


def header(*modules: str, rank: int = 4) -> dict[str, TensorInfo]:
    return {f"{PREFIX}{name}.lora_A.weight": TensorInfo("F32", (rank, 32)) for name in modules}


# A key of `alpha_pattern`, the modules of the file, and the plain name that it is understood as.
LITERALS = {
    r"q_proj$": (["a.q_proj"], "q_proj"),
    r"a\.q_proj": (["a.q_proj"], "a.q_proj"),
    r".*\.q_proj": (["a.q_proj"], "q_proj"),
    r"(.*\.)?q_proj\Z": (["a.q_proj"], "q_proj"),
    r"^(?:.*\.)?q_proj": (["a.q_proj"], "q_proj"),
    r"^a.q_proj": (["a.q_proj"], "a.q_proj"),
    r"q\-proj": (["q-proj"], "q-proj"),
}


@pytest.mark.parametrize("key", LITERALS)
def test_a_name_in_an_expressions_clothes_is_a_name(key):
    modules, name = LITERALS[key]
    raw = {"peft_type": "LORA", "alpha_pattern": {key: 8}}
    assert without_expressions(raw, header(*modules), DEFAULT)["alpha_pattern"] == {name: 8}


MORE_THAN_A_NAME = {
    "alternatives": ("q_proj|v_proj", ["a.q_proj"]),
    "a group": ("(q|v)_proj", ["a.q_proj"]),
    "digits": (r"layers\.\d+\.q_proj", ["layers.1.q_proj"]),
    "a class": ("layers.[01].q_proj", ["layers.1.q_proj"]),
    "the end of a name": (".*q_proj", ["a.q_proj"]),
    "slow": (SLOW, ["a.q_proj"]),
    "broken": ("(", ["a.q_proj"]),
    "a top name that others end in": ("^q_proj", ["a.q_proj"]),
    "all but the top": (r".*\.q_proj", ["q_proj"]),
    "empty": ("", ["q_proj"]),
}


@pytest.mark.parametrize(("key", "modules"), MORE_THAN_A_NAME.values(), ids=MORE_THAN_A_NAME)
def test_an_alpha_for_more_than_a_name_is_refused(key, modules):
    raw = {"peft_type": "LORA", "alpha_pattern": {key: 8}}
    with pytest.raises(AdapterError, match=r"`alpha_pattern` has the entry .*, a regular .*; write it as plain names"):
        without_expressions(raw, header(*modules), DEFAULT)


REFUSED = {
    "no factors": ({"target_modules": ".*"}, {}, "the tensors do not show which modules are adapted; save"),
    "blocks": ({"target_modules": ".*", "layers_to_transform": [0]}, header("a"), "`layers_to_transform` needs"),
    "other names": (
        {"target_modules": ["v"], "exclude_modules": ".*"},
        header("a.q"),
        "'a.q', which is not among the config's `target_modules`",
    ),
    "an odd name": ({"target_modules": ".*"}, header("a b"), "'a b' is not a module name"),
    "too many": ({"target_modules": ".*"}, header(*(f"x.{i}" for i in range(1001))), "adapts 1,001 modules .* 1,000"),
    "a rank of 0": ({"rank_pattern": {".*": 0}}, header("a"), "is 0; it must be a whole number from 1 to 1024"),
}


@pytest.mark.parametrize(("raw", "tensors", "words"), REFUSED.values(), ids=REFUSED)
def test_what_the_tensors_cannot_answer_is_refused(raw, tensors, words):
    with pytest.raises(AdapterError, match=words):
        without_expressions({"peft_type": "LORA"} | raw, tensors, DEFAULT)


# Names that the base lacks, and the warning.
IGNORED = {
    "target_modules": (
        ["q_proj", "v_proj", "c_attn"],
        "`target_modules` names 'c_attn', which was ignored: .* no such",
    ),
    "rank_pattern": ({"c_attn": 9}, "`rank_pattern` names 'c_attn', which was ignored"),
    "alpha_pattern": ({"layers.9.mlp.up_proj": 9}, r"`alpha_pattern` names 'layers\.9\.mlp\.up_proj', which was"),
}


@pytest.mark.parametrize("field", IGNORED)
def test_a_name_that_the_base_lacks_is_ignored_and_told(field, good_lora, tmp_path):
    value, words = IGNORED[field]
    folder = shutil.copytree(good_lora, tmp_path / "lora")
    config(**{field: value})(folder)
    adapter = open_adapter(Folder(folder), describe_base(build("llama")))
    assert len(adapter.warnings) == 1 and re.search(words, adapter.warnings[0]), adapter.warnings
    same_as_peft(folder, lambda: build("llama"))
