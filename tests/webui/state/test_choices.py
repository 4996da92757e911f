# SPDX-License-Identifier: Apache-2.0
"""Which bases visitors may choose, and what becomes of what they send."""

from __future__ import annotations

import pytest

from slim_core.base.choice import DEMO_NAME
from slim_core.inference import EngineError
from slim_core.webui.config import Config, ConfigError
from slim_core.webui.limits import LimitError
from slim_core.webui.state.choices import FIXED_ON_ZERO_GPU, NOT_ALLOWED, choices_of, first_choice


@pytest.fixture
def demo(tmp_path):
    (tmp_path / "base").mkdir()
    return tmp_path


def test_what_the_app_starts_with(demo, tmp_path):
    first = first_choice(Config(load_8bit=True), demo)
    assert (first.name, first.bits, first.base) == (DEMO_NAME, 8, str(demo / "base"))
    named = first_choice(Config(base="me/base", revision="v2", lora="me/lora", load_4bit=True), demo)
    assert (named.base, named.revision, named.lora, named.bits) == ("me/base", "v2", "me/lora", 4)
    with pytest.raises(EngineError, match="There is no demo model"):
        first_choice(Config(), tmp_path / "nothing")
    with pytest.raises(ConfigError, match="SLIM_LOAD_4BIT and SLIM_LOAD_8BIT"):
        Config(load_4bit=True, load_8bit=True)


def test_listed_bases_are_the_operators(demo):
    choices = choices_of(Config(base="me/first", slim="me/slim", models="me/a@v1, me/b\n me/first"), demo)
    assert list(choices.bases) == ["me/first", DEMO_NAME, "me/a", "me/b"] and not choices.fixed
    choice = choices.find("me/a", "", "4-bit")
    assert (choice.base, choice.revision, choice.bits, choice.operator) == ("me/a", "v1", 4, True)
    # What the app started with keeps its adapters.
    assert choices.find("me/first", "", "As it is").slim == "me/slim"
    with pytest.raises(LimitError, match="Choose one of these: me/first, SLIM demo, me/a, me/b"):
        choices.find("me/c", "", "As it is")
    for value in (None, 3, "", "16-bit"):
        with pytest.raises(LimitError):
            choices.find("me/a" if value == "16-bit" else value, "", value)


def test_an_id_that_a_visitor_names_gets_no_token(demo):
    choices = choices_of(Config(models="me/a,*"), demo)
    choice = choices.find(" you/b ", " v1 ", "8-bit")
    assert (choice.base, choice.revision, choice.bits, choice.operator) == ("you/b", "v1", 8, False)
    assert choices.find("me/a", "", "As it is") == choices.bases["me/a"]
    # Another revision is not what the operator listed.
    choice = choices.find("me/a", "v9", "As it is")
    assert (choice.revision, choice.operator) == ("v9", False)
    with pytest.raises(LimitError, match="me/a is offered as it is; leave the revision empty"):
        choices_of(Config(models="me/a"), demo).find("me/a", "v9", "As it is")


def test_two_of_one_name_are_told_apart(demo, tmp_path):
    folders = [tmp_path / parent / "model" for parent in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
    listed = f"me/a@v1,me/a@v2,me/a@v2,{folders[0]},{folders[1]}"
    bases = choices_of(Config(models=listed), demo).bases
    assert list(bases) == [DEMO_NAME, "me/a", "me/a@v2", "model", "b/model"]
    assert [bases[name].revision for name in ("me/a", "me/a@v2")] == ["v1", "v2"]
    assert [bases[name].base for name in ("model", "b/model")] == list(map(str, folders))


def test_where_it_is_fixed_the_reason_is_told(demo):
    for config, zero_gpu, reason in ((Config(), False, NOT_ALLOWED), (Config(models="me/a"), True, FIXED_ON_ZERO_GPU)):
        choices = choices_of(config, demo, zero_gpu)
        assert choices.fixed == reason
        with pytest.raises(LimitError, match="SLIM_"):
            choices.find(DEMO_NAME, "", "4-bit")
