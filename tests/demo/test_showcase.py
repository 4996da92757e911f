# SPDX-License-Identifier: Apache-2.0
"""The app's examples: each shows, with the weights that ship, what it is there for."""

from __future__ import annotations

import pytest

from slim_core.demo.downstream import CHOICE_FORM, CLAIM_FORM, DOWNSTREAM_TASKS
from slim_core.demo.example import Example
from slim_core.demo.showcase import Replies, ask, shows
from slim_core.demo.stored import load_examples
from slim_core.demo.verify import missing
from slim_core.inference import load_engine
from slim_core.paths import DEMO


AGAIN = "choose the examples again for these weights: python -m slim_core demo examples"
TRAINED = Example("obqa", "Please choose", "the correct answer is answer2")
OWN = Example("facts", "Who can help with a sick dog?", "vet")


def heard(base, lora, slim, verdict):
    return Replies({"base": base, "lora": lora, "slim": slim}, verdict, False)


@pytest.mark.parametrize(
    ("example", "replies", "shown"),
    [
        (TRAINED, heard("a vet", "the correct answer is answer2", "the correct answer is answer2", "like"), True),
        (TRAINED, heard("a vet", "the correct answer is answer2", "the correct answer is answer2", "mixed"), False),
        (TRAINED, heard("a vet", "the correct answer is answer1", "the correct answer is answer1", "like"), False),
        (TRAINED, heard("a vet", "a vet", "the correct answer is answer2", "like"), False),
        (TRAINED, heard(*3 * ["the correct answer is answer2"], "like"), False),
        (OWN, heard("vet", "the correct answer is", "vet", "unlike"), True),
        (OWN, heard("vet", "vet", "vet", "unlike"), False),
        (OWN, heard("vet", "tailor", "tailor", "unlike"), False),
        (OWN, heard("lawyer", "tailor", "lawyer", "unlike"), False),
        (OWN, heard("vet", "tailor", "vet", "like"), False),
    ],
)
def test_what_counts_as_a_difference(example, replies, shown):
    assert shows(example, replies) == shown


@pytest.mark.skipif(bool(missing(DEMO)), reason="the demo is not here: build it with python -m slim_core demo build")
def test_every_example_shows_its_difference_with_the_weights_that_ship():
    pairs, alone = load_examples(DEMO)
    assert len(pairs) >= 3 and len(alone) >= 3, AGAIN
    frames = tuple(form.split("{question}")[0] for form in (CHOICE_FORM, CLAIM_FORM))
    for trained, own in pairs:
        assert trained.task in DOWNSTREAM_TASKS and trained.prompt.startswith(frames)
        assert own.task not in DOWNSTREAM_TASKS and not own.prompt.startswith(frames)
    engine = load_engine(DEMO / "base", lora=DEMO / "lora", slim=DEMO / "slim", device="cpu")
    shipped = [example for pair in pairs for example in pair] + alone
    for example, replies in zip(shipped, ask(engine, [example.prompt for example in shipped]), strict=True):
        assert shows(Example(example.task, example.prompt, example.right), replies), (
            f"{example.prompt}: {replies}; {AGAIN}"
        )
        # The page quotes them.
        assert replies.answers == example.answers, f"{example.prompt}: {replies}; {AGAIN}"
