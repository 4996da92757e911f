# SPDX-License-Identifier: Apache-2.0
"""What counts as a right answer."""

from __future__ import annotations

import pytest

from slim_core.evaluation.errors import EvaluationError
from slim_core.evaluation.marking import Expected, Filter, read_filters


@pytest.mark.parametrize(
    ("target", "text", "right"),
    [
        ("Lima", "It is Lima.", True),
        ("Lima", "LIMA", True),
        ("Lima", "Climate", False),
        ("Lima", "Limas", False),
        ("the red  house", "in the\nred house there", True),
        ("red house", "red big house", False),
        ("C++", "I write C++.", True),
        ("3.5", "13.5", False),
        ("Lima", "", False),
    ],
)
def test_words_that_stand_in_an_answer(target, text, right):
    assert Expected((target,), match="contains").mark(text) == float(right)


def test_the_whole_answer_and_patterns():
    exact = Expected(("Yes", "Si"), ignore=(r"\.$",), ignore_case=True)
    assert [exact.mark(text) for text in ("yes.", "SI", "yes, sir", "")] == [1.0, 1.0, 0.0, 0.0]
    assert Expected(("a,b",), ignore_punctuation=True).mark("a b") == 0.0
    assert Expected(("a,b",), ignore_punctuation=True).mark("ab!") == 1.0
    search = Expected((r"answer\d",), match="search", ignore_case=True)
    assert [search.mark(text) for text in ("The Answer3!", "answer")] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("step", "text", "taken"),
    [
        ({"function": "regex", "regex_pattern": r"#### (\d+)"}, "#### 12 and #### 13", "12"),
        ({"function": "regex", "regex_pattern": r"(\d+)", "group_select": -1}, "12 and 13", "13"),
        ({"function": "regex", "regex_pattern": r"(\d+)", "group_select": 2}, "12 and 13", "[invalid]"),
        ({"function": "regex", "regex_pattern": r"(a)|(b)"}, "b", "b"),
        ({"function": "regex", "regex_pattern": r"\d", "fallback": "none"}, "no", "none"),
        ({"function": "regex"}, "so #### 7", "7"),
        ({"function": "remove_whitespace"}, " a b ", "a b"),
        ({"function": "lowercase"}, "Ab", "ab"),
        ({"function": "take_first"}, "as it is", "as it is"),
    ],
)
def test_filters(step, text, taken):
    assert Expected(("x",), read_filters([step], "here")).taken(text) == taken


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ({"function": "custom"}, "here: the filter 'custom' is unknown; the known ones are regex"),
        ({"function": "regex", "regex_pattern": "("}, "here: '(' is not a valid regular expression"),
        ({"function": "regex", "regex_pattern": 3}, "here: 3 is not a valid regular expression"),
        ({"function": "regex", "group_select": "a"}, "`group_select` must be a whole number"),
        ("regex", "a filter must name its `function`"),
    ],
)
def test_filters_that_are_none(step, sentence):
    with pytest.raises(EvaluationError) as caught:
        read_filters([step], "here")
    assert sentence in str(caught.value)


def test_filters_are_applied_in_order():
    steps = (Filter("lowercase"), Filter("regex", "answer([a-d])"))
    assert Expected(("b",), steps).mark("ANSWERB") == 1.0
