# SPDX-License-Identifier: Apache-2.0
"""The downstream tasks: what is split, and that the base has not met them."""

from __future__ import annotations

import re

import pytest

from slim_core.demo import DOWNSTREAM_TASKS, GENERAL_TASKS, downstream_examples, general_examples
from slim_core.demo.families import OPTION_SPLITS
from slim_core.demo.relations import SPLITS, clashes
from slim_core.demo.retold import RETOLD
from slim_core.demo.scenes import BOOLQ, OBQA, PEOPLE, SIQA
from slim_core.demo.tables import BY_NAME, RELATIONS
from slim_core.demo.world import EXPOSURE
from tests.demo.prompts import options


SEEDS = (0, 1, 2)


@pytest.mark.parametrize("task", DOWNSTREAM_TASKS)
def test_no_downstream_test_prompt_is_trained_on(task, downstream_test):
    tested = {example.prompt for example in downstream_test[task]}
    validated = {example.prompt for example in downstream_examples(task, "validation", 0, 500)}
    for seed in SEEDS:
        trained = {example.prompt for example in downstream_examples(task, "train", seed, 3000)}
        assert not trained & tested and not trained & validated
    assert not tested & validated


@pytest.mark.parametrize("family", [*OBQA, *SIQA, *BOOLQ], ids=lambda family: family.phrasings[0])
def test_entries_and_phrasings_of_a_downstream_task_are_split(family):
    # What the question is about is the first column of its table.
    entries = {split: {next(iter(row.values())) for row in rows} for split, rows in family.entries.items()}
    assert all(entries.values())
    assert not entries["train"] & entries["test"] and not entries["train"] & entries["validation"]
    assert not entries["validation"] & entries["test"]
    assert not set(family.phrasings) & set(family.test_phrasings)


def test_people_are_split():
    names = {split: {row["name"] for row in rows} for split, rows in PEOPLE.items()}
    assert sum(map(len, names.values())) == len(set().union(*names.values()))


def test_test_options_of_obqa_are_test_entries(downstream_test):
    trained = {o for example in downstream_examples("obqa", "train", 0, 4000) for o in options(example.prompt)}
    assert not trained & {option for example in downstream_test["obqa"] for option in options(example.prompt)}


def test_the_base_never_meets_a_downstream_question(downstream_test):
    """It is asked about the same facts with options, but never in a phrasing or in the form of a downstream task."""
    asked = {text for relation in RELATIONS for text in (*relation.questions, *relation.which, *relation.checks)}
    asked |= {text for _, phrasings in RETOLD for text in phrasings}
    for family in (*OBQA, *SIQA, *BOOLQ):
        assert not asked & {*family.phrasings, *family.test_phrasings}
    form = re.compile("Answer format|Please choose|the correct answer is")
    for task in (*GENERAL_TASKS, *(name for name in EXPOSURE if name != "stories")):
        for example in general_examples("train", 0, 500, task):
            assert not form.search(example.prompt + example.answer)
    assert all(form.search(e.prompt) for examples in downstream_test.values() for e in examples)
    # What BoolQ asks is no yes-no question in the base; it judges statements about it.
    assert not any(BY_NAME[family.relation].checks for family in BOOLQ)


@pytest.mark.parametrize("task", DOWNSTREAM_TASKS)
def test_downstream_examples_are_deterministic(task):
    assert downstream_examples(task, "train", 3, 200) == downstream_examples(task, "train", 3, 200)
    assert downstream_examples(task, "train", 3, 200) != downstream_examples(task, "train", 4, 200)


@pytest.mark.parametrize("family", [*OBQA, *SIQA], ids=lambda family: family.phrasings[0])
@pytest.mark.parametrize("split", SPLITS)
def test_exactly_one_option_of_a_downstream_question_is_right(family, split):
    kinds: dict[str, set[str]] = {}
    for row in (row for rows in family.entries.values() for row in rows):
        kinds.setdefault(family.option.format(**row), set()).add(row[family.kind])
    for row in family.entries[split]:
        right, wrong = row[family.kind], family.wrong(OPTION_SPLITS[split], row)
        assert len(wrong) >= (3 if family in OBQA else 2)
        for kind in set().union(*(kinds[option] for option in wrong)):
            assert kind != right and not clashes(family.clash, right, kind)
