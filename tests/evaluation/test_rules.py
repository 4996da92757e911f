# SPDX-License-Identifier: Apache-2.0
"""Rules of the form of an answer: each holds for one text and not for another."""

from __future__ import annotations

import pytest

from slim_core.evaluation.errors import EvaluationError
from slim_core.evaluation.rules import RULES, read_rules
from slim_core.evaluation.tasks import Asking, load_tasks


# A rule, texts that follow it, and texts that do not.
CASES = [
    ({"rule": "min_words", "n": 3}, ["one two three", "don't do well-known"], ["one two", "- - -"]),
    ({"rule": "max_words", "n": 2}, ["well-known fact"], ["one two three"]),
    ({"rule": "exact_words", "n": 1}, ["Apple.", "**pear**"], ["an apple"]),
    ({"rule": "min_sentences", "n": 2}, ["It is. So what?"], ["It is, so what?", "3.5 is a number."]),
    ({"rule": "max_sentences", "n": 1}, ["Just one, of 3.5 words."], ["One. Two."]),
    ({"rule": "exact_sentences", "n": 2}, ['"One." Two!', "One. Two"], ["One.", "One. Two. Three."]),
    ({"rule": "paragraphs", "n": 2}, ["a\nb\n\nc", "a\n \n\nb\n"], ["a\nb", "a\n\nb\n\nc"]),
    ({"rule": "bullets", "n": 2}, ["- a\n- b", "Two:\n * a\n • b"], ["- a", "-a\n-b", "- a\n- b\n- c"]),
    ({"rule": "numbered_list", "n": 2}, ["1. a\n2. b", "1) a\n2) b"], ["1. a\n3. b", "2. a\n1. b", "1. a"]),
    ({"rule": "one_line"}, ["one\n"], ["one\ntwo"]),
    ({"rule": "contains", "word": "sea"}, ["The SEA is"], ["season"]),
    ({"rule": "lacks", "word": "sea"}, ["season"], ["the sea"]),
    ({"rule": "contains_times", "word": "a b", "n": 2}, ["a b and a b"], ["a b", "a b a b a b"]),
    ({"rule": "lacks_letter", "letter": "s"}, ["a cat"], ["Sit"]),
    ({"rule": "starts_with", "phrase": "First of all"}, [" first of all, no"], ["At first of all"]),
    ({"rule": "ends_with", "phrase": "the end"}, ["So it was the end.", 'He said "the end"'], ["the end of it"]),
    ({"rule": "lower_case"}, ["all small, 3"], ["Not small", "123"]),
    ({"rule": "upper_case"}, ["WET PAINT!"], ["WET paint", "123"]),
    ({"rule": "no_commas"}, ["none here"], ["a, b"]),
    ({"rule": "no_digits"}, ["four"], ["4"]),
    ({"rule": "json"}, ['{"a": 1}', "[1]", '```json\n{"a": 1}\n```'], ["1", "{a: 1}", 'Here: {"a": 1}', "[" * 99_999]),
    ({"rule": "quoted"}, ['"a b"', "“a”"], ['a "b"', '"a" b']),
    ({"rule": "title"}, ["<<Sun>>\nIt shines."], ["<Sun>", "<<>>"]),
    ({"rule": "placeholders", "n": 2}, ["[date] at [place]"], ["[date]", "[]"]),
    ({"rule": "sections", "word": "Step", "n": 2}, ["Step 1\na\n**Step 2**\nb"], ["Step 1", "A Step 1\nStep 2"]),
    ({"rule": "postscript"}, ["Bye.\nP.S. More.", "P. S. a"], ["PS: more", "the P.S. is"]),
]


@pytest.mark.parametrize(("rule", "follows", "breaks"), CASES, ids=lambda case: str(case)[:30])
def test_rules(rule, follows, breaks):
    read = read_rules([rule], "here")
    assert [text for text in follows if read.mark(text) != 1.0] == []
    assert [text for text in breaks if read.mark(text) != 0.0] == []
    assert read.mark(" \n") == 0.0


def test_every_rule_has_a_case():
    assert {case[0]["rule"] for case in CASES} == RULES.keys()


def test_all_rules_must_hold():
    read = read_rules([{"rule": "max_words", "n": 2}, {"rule": "no_commas"}], "here")
    assert (read.mark("a, b"), read.share("a, b"), read.mark("a b"), read.share("a b")) == (0.0, 0.5, 1.0, 1.0)


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ("max_words", "here: `rules` must be a list such as"),
        ([], "here: `rules` must be a list such as"),
        (["max_words"], "here: a rule must be an object such as"),
        ([{"rule": "rhymes"}], "here: there is no rule 'rhymes'; the rules are min_words,"),
        ([{"rule": "max_words"}], "here: the rule max_words takes `n`, not nothing."),
        ([{"rule": "one_line", "n": 3}], "here: the rule one_line takes nothing else, not n."),
        ([{"rule": "max_words", "n": "3"}], "here: `n` of the rule max_words must be a whole number from 0, not '3'."),
        ([{"rule": "max_words", "n": True}], "must be a whole number from 0, not True."),
        ([{"rule": "max_words", "n": -1}], "must be a whole number from 0, not -1."),
        ([{"rule": "contains", "word": " "}], "here: `word` of the rule contains must be a text, not ' '."),
        ([{"rule": "contains", "word": 3}], "must be a text, not 3."),
    ],
)
def test_rules_that_are_none(rules, sentence):
    with pytest.raises(EvaluationError) as caught:
        read_rules(rules, "here")
    assert sentence in str(caught.value)


def test_the_instructions_that_come_along():
    (task,) = load_tasks(["instructions"], Asking())
    assert task.kind == "general" and task.scoring == "rules" and len(task.items) == 40
    used = {rule.name for item in task.items for rule in item.expected.rules}
    assert used == RULES.keys()
