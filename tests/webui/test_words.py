# SPDX-License-Identifier: Apache-2.0
"""Differences word by word, and numbers for people."""

import itertools

import pytest
import torch

from slim_core.inference.types import Drift, RowStep, Sampling, VariantDrift
from slim_core.webui.tabs.examples import ALONE, PAIRS, short
from slim_core.webui.wire.diff import differences
from slim_core.webui.words import drift_sentence, how, speed, state


@pytest.mark.parametrize(
    ("base", "other"),
    [
        ("", ""),
        ("", "new"),
        ("the cat sat", "the dog sat"),
        ("a  b\n\nc", "a b\nc"),
        ("Das ist gut.", "Das, ist gut!"),
        ("日本語 text", "日本 text"),
    ],
)
def test_pieces_give_both_texts_back(base, other):
    pieces = differences(base, other)
    assert "".join(text for mark, text in pieces if mark != "removed") == other
    assert "".join(text for mark, text in pieces if mark != "added") == base


def test_words_not_letters():
    expected = [("same", "the "), ("removed", "cat"), ("added", "car"), ("same", " sat")]
    assert list(differences("the cat sat", "the car sat")) == expected


def test_long_answers_end():
    left = " ".join(f"w{i}" for i in range(40_000))
    right = " ".join(f"w{i * 7 % 40_001}" for i in range(40_000))
    # All pairs of words would take hours.
    assert differences(left, right)
    # So would an answer that says the same over and over.
    assert differences("the " * 1400, "the cat " * 700)


def test_drift_in_one_sentence():
    zeros = torch.zeros(2)
    drift = Drift(
        ("a", "b"),
        (
            VariantDrift("lora", torch.tensor([7.0, 7.0]), zeros),
            VariantDrift("slim", torch.tensor([0.05, 0.0453]), zeros),
        ),
    )
    assert drift_sentence(drift, {"lora": "LoRA", "slim": "SLIM"}) == (
        "LoRA finds the base’s answer 10^6 times less likely; SLIM finds it 1.10 times less likely."
    )


def test_states_and_speed():
    assert state(RowStep("a"), 2) == "waiting, 2 in line before you"
    assert state(RowStep("a", "reading")) == "reading the prompt"
    assert state(RowStep("a", "done", finish_reason="length")) == "done: length limit reached"
    assert state(RowStep("a", "done", finish_reason="stopped")) == "stopped"
    assert speed(RowStep("a", tokens=1, tokens_per_second=None, seconds=0.5)) == "1 token · 0.50 s"
    assert how(Sampling(), RowStep("a")) == "greedy"
    begun = RowStep("a", first_token_seconds=0.25)
    assert how(Sampling(), RowStep("a"), 0.0) == "greedy · gate open"
    assert how(Sampling(), RowStep("a"), 8.0) == "greedy · gate of strength 8"
    assert how(Sampling(temperature=0.7, seed=4), begun) == "temperature 0.7, seed 4 · first token after 0.25 s"


def test_examples_are_short_on_their_buttons():
    for one in (*itertools.chain(*PAIRS), *ALONE):
        assert 0 < len(short(one.prompt)) <= 91 and "Answer format" not in short(one.prompt)
        assert one.see.startswith("You should see: ") and one.see.endswith(".")


def test_pairs_are_in_the_demos_own_forms():
    from slim_core.demo.downstream import CHOICE_FORM, CLAIM_FORM

    frames = tuple(form.split("{question}")[0] for form in (CHOICE_FORM, CLAIM_FORM))
    for trained, own in PAIRS:
        assert trained.prompt.startswith(frames) and not own.prompt.startswith(frames)
