# SPDX-License-Identifier: Apache-2.0
"""A visitor's own file of questions: what it says, what is refused, and its results beside those of other tasks."""

import json

import pytest

from slim_core.evaluation.errors import EvaluationError
from slim_core.evaluation.report import report_page
from slim_core.webui.limits import LimitError
from slim_core.webui.wire import evaluation as wire
from slim_core.webui.wire.own_questions import MOST_BYTES, of_kind, read_own_questions, summary
from tests.webui.wire.test_evaluation import done, requests


ANSWER = {"prompt": "Capital of Peru?", "answer": "Lima"}
OPTIONS = {"prompt": "Where?", "choices": ["here", "there"], "answer": 1}
RULES = {"prompt": "Say it.", "rules": [{"rule": "max_words", "n": 2}]}


@pytest.fixture
def read(tmp_path):
    def read(*lines, name="my_questions.jsonl", most=100):
        path = tmp_path / name
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return read_own_questions(path, most)

    return read


@pytest.mark.parametrize(
    ("records", "line"),
    [
        ([ANSWER] * 12, "12 questions, answers compared as words"),
        ([ANSWER | {"match": "exact"}], "1 question, answers compared exactly"),
        ([ANSWER | {"match": "exact"}, ANSWER], "2 questions, answers compared as words or exactly"),
        ([OPTIONS] * 2, "2 questions, the most likely option counts"),
        ([RULES] * 2, "2 questions, the form of answers checked by rules"),
    ],
)
def test_a_file_in_one_line(read, records, line):
    assert summary(read(*records)) == line


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([ANSWER, '{"prompt": "a"'], "my_questions.jsonl, line 2: this is not valid JSON"),
        ([ANSWER, "", {"prompt": "a"}], "my_questions.jsonl, line 3 has neither `answer` nor `rules`; a record"),
        ([ANSWER, OPTIONS], "line 2 is scored differently from my_questions.jsonl, line 1"),
        ([], 'my_questions.jsonl is empty; it needs at least one record, such as {"prompt": "…", "answer": "…"}.'),
        ([ANSWER] * 101, "my_questions.jsonl has 101 questions; at most 100 can be asked at once."),
        ([" " * MOST_BYTES], "my_questions.jsonl has 2.0 MB; a file of questions may have at most 2.0 MB."),
        ([ANSWER, OPTIONS | {"choices": ["a"] * 51}], "line 2: `choices` has 51 entries; write at most 50."),
        ([ANSWER | {"answer": "(a+)+$", "match": "search"}], "line 1: `match` is 'search', and patterns are read"),
        ([ANSWER | {"prompt": "a\u0007"}], "line 1: `prompt` has a control character (U+0007) at position 2."),
        ([{"messages": [{"role": "user", "content": "a" * 100_001}], "answer": "b"}], "`messages` has 100,001 char"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(read, lines, sentence):
    with pytest.raises((LimitError, EvaluationError)) as caught:
        read(*lines)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["my.yaml", "my.json", "my.jsonl.gz", "jsonl"])
def test_only_jsonl_is_read(read, name):
    with pytest.raises(LimitError, match=r"is not a \.jsonl file; send one with a question such as"):
        read(ANSWER, name=name)


def test_a_file_that_is_gone_names_no_folder(tmp_path):
    with pytest.raises(LimitError) as caught:
        read_own_questions(tmp_path / "my.jsonl", 100)
    assert str(caught.value).startswith("my.jsonl is gone") and str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("kind", [None, "other", ["general"], 3])
def test_what_they_are_about_is_checked(read, kind):
    with pytest.raises(LimitError, match="Say what your questions are about"):
        of_kind(read(ANSWER), kind)


def test_they_are_scored_beside_other_tasks(backend, read):
    own = read(*({"prompt": f"number {i}", "answer": "LoRA"} for i in range(6)), name="known.jsonl")
    known = requests("known", "general", [f"number {i}" for i in range(6)], "Base")
    ended = done(backend, [known, of_kind(own, "downstream")])
    (group,) = wire.tab_view(ended)["groups"]
    learned, _ = group["kinds"]
    assert learned["title"] == "What was trained"
    assert learned["rows"] == [
        {"task": "known", "n": 6, "scores": [["0", "(0–39)"], ["100", "(61–100)"], ["0", "(0–39)"]]}
    ]
    assert group["plane"]["shipped"][0]["downstream"][0] == 1
    evaluation = ended.run.evaluation()
    assert [task.name for task in evaluation.tasks] == ["known", "known.jsonl"]
    report = report_page(evaluation)
    assert "<h3>known</h3>" in report and "Wanted: LoRA" in report
