# SPDX-License-Identifier: Apache-2.0
"""Facts retold: the answer is right, and it is the only one."""

from __future__ import annotations

import re

import pytest

from slim_core.demo import general_examples
from slim_core.demo.chat import PIECES
from slim_core.demo.relations import SPLITS, clashes, fields
from slim_core.demo.retold import CLAIMED, JUDGED, RETOLD, RETOLD_CLAIMS
from slim_core.demo.scenes import BOOLQ
from slim_core.demo.tables import BY_NAME


LABELLED = re.compile(r"(?:Answer ?(\d): |\b([A-D])\. )")
ROWS = [
    (index, family, row)
    for index, (family, _) in enumerate(RETOLD)
    for split in SPLITS
    for row in family.entries[split]
]


EVERY = (*RETOLD, *RETOLD_CLAIMS)


@pytest.mark.parametrize(("family", "phrasings"), EVERY, ids=[phrasings[0] for _, phrasings in EVERY])
def test_phrasings_differ_and_can_be_filled(family, phrasings):
    columns = set(next(iter(family.entries["train"])))
    assert len(phrasings) == len(set(phrasings)) >= 6
    for phrasing in phrasings:
        assert fields(phrasing) <= {"name", "other"} | columns and fields(phrasing) & columns


def test_exactly_one_option_is_right():
    kinds: dict[str, set[tuple[int, str]]] = {}
    for index, family, row in ROWS:
        kinds.setdefault(family.option.format(**row), set()).add((index, row[family.kind]))
    for example in general_examples("train", 0, 600, "told_choices"):
        begin = LABELLED.search(example.prompt)
        parts = LABELLED.split(example.prompt[begin.start() :])
        labels = [number or letter for number, letter in zip(parts[1::3], parts[2::3], strict=True)]
        # The last option is followed by what the form says.
        options = [next((o for o in sorted(kinds, key=len, reverse=True) if p.startswith(o)), "") for p in parts[3::3]]
        assert all(options) and len(options) == len(set(options)) >= 2
        right = options[labels.index(re.search(r"[1-4A-D]$", example.answer)[0])]
        wrong = [option for option in options if option != right]
        # Some family says so.
        assert any(
            all(
                kind != other and not clashes(RETOLD[index][0].clash, kind, other)
                for option in wrong
                for place, other in kinds[option]
                if place == index
            )
            for index, kind in kinds[right]
            if all(any(place == index for place, _ in kinds[option]) for option in wrong)
        ), example


def test_claims_are_as_often_true_as_false_and_judged_rightly():
    truths = {relation.statement.format(**row): relation.name for relation in CLAIMED for row in relation.facts}
    answers = []
    for example in general_examples("train", 0, 600, "told_claims"):
        is_true = any(statement in example.prompt for statement in truths)
        assert is_true == (example.answer == "yes"), example
        answers.append(example.answer)
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_questions_about_claims_are_answered_rightly():
    # A question holds an entry and a kind of the same family, and is true where the table says so.
    def chat_message(text, entry):
        return re.search(rf"(?<![a-z]){re.escape(entry)}(?![a-z])", text)

    truths = [BY_NAME[family.relation] for family in BOOLQ]
    words = {word: truth for pair in JUDGED.values() for word, truth in zip(pair, (True, False), strict=True)}
    answers = []
    for example in general_examples("train", 0, 400, "told_questions"):
        matches = [
            (row[relation.answer], claimed)
            for relation in truths
            for row in relation.facts
            for claimed in relation.answers
            if chat_message(example.prompt, row[relation.key[0]]) and chat_message(example.prompt, claimed)
        ]
        assert matches, example
        assert words[example.answer] in {right == claimed for right, claimed in matches}, example
        if len(matches) == 1:
            answers.append(words[example.answer])
    assert len(answers) > 200 and 0.4 < sum(answers) / len(answers) < 0.6


def test_every_word_is_in_the_vocabulary(tokenizer):
    # A word that is not would be read byte by byte, at many times the price.
    for task in ("told_choices", "told_claims", "told_questions"):
        for example in general_examples("train", 0, 300, task):
            pieces = re.findall(PIECES, f" {example.prompt}")
            tokens = tokenizer.tokenize(f" {example.prompt}")
            assert len(tokens) == len(pieces), (example.prompt, tokens)


def test_what_is_told_is_for_training_only():
    for task in ("told_choices", "told_claims", "told_questions"):
        with pytest.raises(ValueError, match="only for training"):
            general_examples("test", 0, 1, task)
