# SPDX-License-Identifier: Apache-2.0
"""Every option of every method is described with its default, and with where that comes from."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import MISSING, fields

import pytest
from peft.tuners.lora.intruders import reduce_intruder_dimension

from slim_core import SlimConfig
from slim_core.baselines import METHODS
from slim_core.training.losses import LOSSES, mask_the_target


STATED = re.compile(r"Default `(?P<value>[^`]+)`: (?P<source>.+)")
# A choice of this project has a reason.
SOURCE = re.compile(r"\b(?:authors'|paper|PEFT's own|this project's choice[,;] \w+)")


def entries(docstring):
    """The descriptions in a docstring's lists of names, each in one line."""
    found, name = {}, None
    for line in inspect.cleandoc(docstring or "").splitlines():
        if match := re.fullmatch(r" {4}(\w+)(?: \(.+\))?: ?(.*)", line):
            name, found[match[1]] = match[1], match[2]
        elif name and line.startswith(" " * 8):
            found[name] += f" {line.strip()}"
        else:
            name = None
    return found


def descriptions(method):
    classes = [cls for cls in reversed(method.config_cls.__mro__) if cls.__module__.startswith("slim_core.")]
    return {
        name: text
        for documented in (*classes, method.configure, method.finish)
        for name, text in entries(getattr(documented, "__doc__", None)).items()
    }


def defaults(method):
    """What a method's options are where nobody sets them."""
    if method.options is not None:
        return dict(method.options)
    values = {
        f.name: f.default_factory() if f.default is MISSING else f.default for f in fields(method.config_cls) if f.init
    }
    return {name: values[name] for name in method.option_names()}


def check(text, default):
    stated = STATED.search(text)
    assert stated, "it must say: Default `VALUE`: SOURCE."
    value = ast.literal_eval(stated["value"])
    assert (value, type(value)) == (default, type(default))
    assert SOURCE.search(stated["source"]), "its source is the authors, a paper, PEFT, or a reasoned choice"


@pytest.mark.parametrize(
    ("method", "option"), [(name, option) for name, m in METHODS.items() for option in sorted(m.option_names())]
)
def test_an_option_says_its_default_and_where_that_comes_from(method, option):
    described = descriptions(METHODS[method])
    assert option in described, "it has no entry in a docstring"
    check(described[option], defaults(METHODS[method])[option])


OWN_FIELDS = sorted(
    set(SlimConfig.__annotations__) - {"format_version", "base_fingerprint"}  # set by the library
)


@pytest.mark.parametrize("name", OWN_FIELDS)
def test_a_field_of_slim_says_it_too(name):
    field = SlimConfig.__dataclass_fields__[name]
    check(entries(SlimConfig.__doc__)[name], field.default_factory() if field.default is MISSING else field.default)


def test_the_weight_of_a_loss_says_it_too():
    weighted = {name: loss.weight for name, loss in LOSSES.items() if loss.weight is not None}
    assert [*weighted] == ["mask-the-target"]
    check(entries(mask_the_target.__doc__)["weight"], weighted["mask-the-target"])


def test_what_is_called_pefts_own_is():
    parameters = inspect.signature(reduce_intruder_dimension).parameters
    names = {"top_k": "top_k", "threshold": "threshold_epsilon", "share": "mitigation_lambda"}
    ours = METHODS["lora-intruders"].options
    assert ours == {name: parameters[pefts].default for name, pefts in names.items()}


@pytest.mark.parametrize(
    "text", ["Seed.", "Seed. Default `1`: the authors' script.", "Default `0`.", "Default `0`: this project's choice."]
)
def test_a_default_that_is_missing_wrong_or_of_unknown_source_is_found(text):
    with pytest.raises(AssertionError):
        check(text, 0)
    check("Seed. Default `0`: this project's choice; any other would do.", 0)
