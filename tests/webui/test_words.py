# SPDX-License-Identifier: Apache-2.0
"""Differences word by word, and numbers for people."""

import pytest
import torch

from slim_core.inference import GateSetting, Measure
from slim_core.inference.types import Drift, RowStep, Sampling, VariantDrift
from slim_core.webui.wire.diff import differences
from slim_core.webui.words import answer_settings, distance_sentence, drift_sentence, measure_rows, speed, state


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
        "LoRA finds the base’s answer 10⁶ times less likely; SLIM finds it 1.10 times less likely."
    )
    assert drift_sentence(drift, {}, taught=True).startswith(
        "This is like the training data, where the adapters moved towards what they were taught: lora finds"
    )
    assert drift_sentence(Drift((), ()), {}, taught=True) == ""


def test_states_and_speed():
    assert state(RowStep("a"), 2) == "waiting, 2 ahead of you in line"
    assert state(RowStep("a", "reading")) == "reading the prompt"
    assert state(RowStep("a", "done", finish_reason="length")) == "done: length limit reached"
    assert state(RowStep("a", "done", finish_reason="stopped")) == "stopped"
    assert speed(RowStep("a", tokens=1, tokens_per_second=None, seconds=0.5)) == "1 token · 0.50 s"
    assert answer_settings(Sampling(), RowStep("a")) == "greedy"
    begun = RowStep("a", first_token_seconds=0.25)
    assert answer_settings(Sampling(), RowStep("a"), GateSetting(0.0, 0.9)) == "greedy · gate open"
    assert answer_settings(Sampling(), RowStep("a"), GateSetting(8.0)) == "greedy · gate at strength 8"
    closing = "gate at strength 2, closing beyond 99.9% of the training data"
    assert answer_settings(Sampling(), RowStep("a"), GateSetting(2.0, 0.999)) == f"greedy · {closing}"
    assert (
        answer_settings(Sampling(temperature=0.7, seed=4), begun)
        == "temperature 0.7, seed 4 · first token after 0.25 s"
    )


CONTEXT = "the running mean of what a Linear has read since the last user turn began"
RMS = "the root of the mean square over the channels, in standard deviations, less 1"
MOST = "the largest over the channels, in standard deviations, less 1"


@pytest.mark.parametrize(
    ("measure", "sentence", "rows"),
    [
        (
            Measure("rms", "context", "gate", 4.0, 0.99, (), 0.1, True, 4),
            f"It is the distance of {CONTEXT} from the nearest cluster: {RMS}.",
            {
                "Format": "4",
                "Distance of": CONTEXT,
                "Measured as": RMS,
                "Least variance": "10% of that of the tokens, per channel",
                "Reference": "99% of the training data are nearer",
                "How LoRA yields": (
                    "the LoRA experts’ weights × (1 − strength 4 × (distance − reference)), at least 0"
                ),
                "Judged by": "the mean excess of its own router and all before it",
            },
        ),
        (
            Measure("max", "token", "calibrated", 0.5, 0.999, (0.999,), 0.0, False, 1),
            f"It is the distance of each token by itself from the nearest cluster: {MOST}.",
            {
                "Format": "1",
                "Distance of": "each token by itself",
                "Measured as": MOST,
                "Reference": "99.9% of the training data are nearer",
                "How LoRA yields": "the LoRA experts’ logits − strength 0.5 × (distance − reference)",
                "Judged by": "its own router alone",
            },
        ),
        (
            Measure("max", "context", "paper", 1.0, 0.99, (), 0.0, False, 2),
            f"It is the distance of {CONTEXT} from the nearest cluster: {MOST}.",
            {
                "Format": "2",
                "Distance of": CONTEXT,
                "Measured as": MOST,
                "How LoRA yields": "the LoRA experts’ logits − strength 1 × the distance",
                "Judged by": "its own router alone",
            },
        ),
    ],
)
def test_how_an_adapter_measures(measure, sentence, rows):
    assert distance_sentence(measure) == sentence
    assert dict(measure_rows(measure)) == rows
