# SPDX-License-Identifier: Apache-2.0
"""The weights that ship: small, harmless files, and as good as the stored results say."""

from __future__ import annotations

import pytest

from slim_core.demo.cards import CARD, cards
from slim_core.demo.downstream import DOWNSTREAM_TASKS
from slim_core.demo.identity import exact_answers
from slim_core.demo.measure import chat_message, questions
from slim_core.demo.stored import load_report, load_results
from slim_core.demo.trial import load
from slim_core.demo.verify import QUESTIONS, differences, missing, sample
from slim_core.inference import Message, Row, Sampling, load_engine, verdict_of
from slim_core.paths import DEMO


FILE_LIMIT, TOTAL_LIMIT = 9_500_000, 25_000_000  # bytes

pytestmark = pytest.mark.skipif(
    bool(missing(DEMO)), reason="the demo is not here: build it with python -m slim_core demo build"
)


def test_files_are_small_and_cannot_run_code():
    files = [path for path in DEMO.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja", ".md"}
    assert max(path.stat().st_size for path in files) < FILE_LIMIT
    assert sum(path.stat().st_size for path in files) < TOTAL_LIMIT


def test_a_sample_agrees_with_the_stored_results():
    assert differences(sample(DEMO, 20), DEMO) == []


def test_stored_results_are_complete():
    results = load_results(DEMO)
    assert results["split"] == "test"
    assert all(task["n"] == QUESTIONS for task in results["tasks"].values())
    for kind in ("general", "downstream"):
        tasks = [task for task in results["tasks"].values() if task["kind"] == kind]
        for variant, mean in results[kind].items():
            assert mean == pytest.approx(sum(task[variant]["score"] for task in tasks) / len(tasks), abs=1e-3)


def test_model_cards_say_what_is_stored():
    stored = cards(load_results(DEMO))
    assert {name: (DEMO / name / CARD).read_text(encoding="utf-8") for name in stored} == stored


def test_the_adapters_are_the_best_of_their_sweep():
    report = load_report(DEMO)
    if report is None:
        pytest.skip("these weights were not made by one run of python -m slim_core demo build")
    for method, choice in report["chosen"].items():
        means = {}
        for row in report["sweep"]:
            if row["method"] == method:
                means.setdefault(row["rate"], []).append(row["downstream"])
        means = {rate: sum(values) / len(values) for rate, values in means.items()}
        assert max(means.values()) == means[choice["rate"] if isinstance(choice, dict) else choice]


def test_a_second_question_is_answered_as_if_it_were_the_first():
    engine = load_engine(DEMO / "base", device="cpu")
    before = (Message("user", "What kind of animal is a whale? A. bird B. mammal"), Message("assistant", "B. mammal"))
    *_, step = engine.answer(
        [Row("base", (*before, Message("user", "What is the capital of France?")))], Sampling(max_new_tokens=20)
    )
    assert "Paris" in step.rows[0].text


def test_exact_answers_are_those_of_the_verdict():
    prompts = [questions(task, "test", 3)[i].prompt for task in ("sums", "facts", "talk", "boolq") for i in range(3)]
    model, tokenizer = load(DEMO / "base", DEMO / "slim")
    actual = exact_answers(model, tokenizer, [[chat_message("user", prompt)] for prompt in prompts])
    engine = load_engine(DEMO / "base", slim=DEMO / "slim", device="cpu")
    expected = []
    for prompt in prompts:
        *_, step = engine.answer([Row("slim", (Message("user", prompt),), routing=True)], Sampling(max_new_tokens=40))
        expected.append(verdict_of(step.routing[0]).exact)
    assert actual == expected
    assert any(actual) and not any(actual[-3:])


def test_trained_foreign_and_trained_again_in_one_conversation():
    engine = load_engine(DEMO / "base", slim=DEMO / "slim", device="cpu")
    trained = [questions(task, "test", 5)[4].prompt for task in DOWNSTREAM_TASKS]
    foreign = [questions(task, "test", 5)[4].prompt for task in ("sums", "facts")]
    asked = [trained[0], foreign[0], trained[1], foreign[1], trained[2]]
    messages, shares = (), []
    for question in asked:
        messages = (*messages, Message("user", question))
        *_, step = engine.answer([Row("slim", messages, routing=True)], Sampling(max_new_tokens=20))
        shares.append(verdict_of(step.routing[0]).identity)
        messages = (*messages, Message("assistant", step.rows[0].text))
    # Foreign ones go past LoRA less wholly after a trained turn than as the first one.
    assert max(shares[::2]) < 0.1 and min(shares[1::2]) > 0.6
