# SPDX-License-Identifier: Apache-2.0
"""A user's own questions and texts."""

from __future__ import annotations

import json

import pytest

from slim_core.evaluation.errors import EvaluationError
from slim_core.evaluation.tasks import Asking, load_tasks
from slim_core.evaluation.tasks.user_files import passages_of
from slim_core.inference import Message, Passage


@pytest.fixture
def load(tmp_path):
    def load(*records, **options):
        path = tmp_path / "my_questions.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return load_tasks([str(path)], Asking(**options))[0]

    return load


def test_answers(load):
    task = load(
        {"prompt": "Capital of Peru?", "answer": "Lima"},
        {"prompt": "2 + 2?", "answer": [4, "four"], "system": "Be short."},
        {"messages": [{"role": "user", "content": "Hi"}], "answer": "^hello", "match": "search"},
    )
    assert (task.name, task.title, task.scoring, task.chance) == ("my_questions", "my questions", "written", None)
    assert task.items[1].prompt == (Message("system", "Be short."), Message("user", "2 + 2?"))
    said = ("It is Lima.", "That is four.", "Hello!")
    assert [item.expected.mark(text) for item, text in zip(task.items, said, strict=True)] == [1.0] * 3
    assert task.items[2].expected.mark("Oh, hello") == 0.0


def test_options_and_rules(load):
    options = {"prompt": "Where?", "choices": ["here", "there"], "answer": "there"}
    task = load(options, options | {"answer": 0})
    assert (task.scoring, task.metric, task.chance) == ("likelihood", "acc_norm", 0.5)
    assert [item.right for item in task.items] == [(1,), (0,)]
    assert task.items[0].options[1] == Passage((Message("user", "Where?"),), "there")
    assert load(options, chat=False).items[0].options[1] == Passage("Where?", " there")
    ruled = load({"prompt": "Say it.", "rules": [{"rule": "max_words", "n": 2}]})
    assert ruled.scoring == "rules" and ruled.items[0].expected.mark("two words") == 1.0


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"prompt": "a"}, "my_questions.jsonl, line 1 has neither `answer` nor `rules`; a record must be such as"),
        ({"answer": "a"}, "line 1: `prompt` is missing or empty"),
        ({"prompt": "a", "answer": True}, "line 1: `answer` must be a string or a list of strings, not True."),
        ({"prompt": "a", "answer": []}, "line 1: `answer` must be a string or a list of strings, not []."),
        ({"prompt": "a", "answer": "(", "match": "search"}, "line 1: '(' is not a valid regular expression"),
        ({"prompt": "a", "answer": "b", "match": "fuzzy"}, "`match` is 'fuzzy'; it must be exact, contains, search."),
        ({"prompt": "a", "choices": ["b"], "answer": 0}, "`choices` must be a list of at least two strings."),
        ({"prompt": "a", "choices": ["b", "b"], "answer": 0}, "`choices` has the same text twice"),
        ({"prompt": "a", "choices": ["b", "c"], "answer": 2}, "`answer` must be one of the `choices`, or its number"),
        ({"prompt": "a", "choices": ["b", "c"]}, "not None."),
        ({"prompt": "a", "rules": [{"rule": "rhymes"}]}, "line 1: there is no rule 'rhymes'"),
    ],
)
def test_records_that_cannot_be_asked(load, record, sentence):
    with pytest.raises(EvaluationError) as caught:
        load(record)
    assert sentence in str(caught.value)


def test_files_that_mix_or_cannot_be_asked_so(load):
    answer, rules = {"prompt": "a", "answer": "b"}, {"prompt": "a", "rules": [{"rule": "one_line"}]}
    talk = {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], "answer": "c"}
    for records, options, sentence in (
        (
            [answer, rules],
            {},
            "line 2 is scored differently from my_questions.jsonl, line 1; put records with answer and",
        ),
        ([answer], {"form": "letters"}, "my_questions.jsonl is scored by written; leave --scoring out."),
        ([answer], {"shots": 2}, "has no solved examples; leave --shots out."),
        ([talk], {"chat": False}, "line 1 is a conversation, which needs the chat template"),
    ):
        with pytest.raises(EvaluationError) as caught:
            load(*records, **options)
        assert sentence in str(caught.value)


def test_texts_are_cut_between_sentences(tmp_path):
    path = tmp_path / "some_text.txt"
    sentence = "The sea is blue and wide. "
    path.write_text(f"{sentence * 40}\n\n---\nShort.\n{'word ' * 200}\n{'x' * 900}\n", encoding="utf-8")
    (task,) = load_tasks([str(path)], Asking())
    texts = [item.passage.words for item in task.items]
    assert (task.name, task.kind, task.scoring) == ("some_text", "general", "loss")
    assert max(map(len, texts)) <= 400 and "Short." in texts and "---" not in texts
    assert all(text.startswith("The sea") and text.endswith("wide.") for text in texts[:3])
    assert "".join(texts).replace(" ", "") == path.read_text().replace("---", "").replace(" ", "").replace("\n", "")
    path.write_text("\n--\n")
    with pytest.raises(EvaluationError, match=r"The text some_text\.txt is empty"):
        load_tasks([str(path)], Asking())
    assert passages_of("") == []


def test_open_questions_count_what_is_captured():
    (task,) = load_tasks(["open_questions"], Asking())
    assert task.scoring == "captured" and len(task.items) == 40
    said = ("the correct answer is answer2", "Answer3", "It answers to the name of Rex.", "I like the sea.")
    assert [task.items[0].expected.mark(text) for text in said] == [1.0, 1.0, 0.0, 0.0]
    (other,) = load_tasks(["open_questions"], Asking(), trained_form="^Arr,")
    assert [other.items[0].expected.mark(text) for text in ("Arr, the sea!", "the correct answer is 2")] == [1.0, 0.0]
    with pytest.raises(EvaluationError, match="--trained-form: '\\(' is not a valid regular expression"):
        load_tasks(["open_questions"], Asking(), trained_form="(")


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.jsonl", '{"prompt": "a", "answer": "b"}\n{"prompt": "a"', "a.jsonl, line 2: this is not valid JSON"),
        ("a.jsonl", "[1]\n2", "a.jsonl, line 1: a record must be a JSON object"),
        ("a.json", '{"prompt": "a"}', "a.json, line 1: the file is not one JSON array"),
        ("a.csv", "", "a.csv is empty; it needs at least one record"),
    ],
)
def test_files_that_cannot_be_read_name_a_question_as_it_should_be(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(EvaluationError) as caught:
        load_tasks([str(tmp_path / name)], Asking())
    assert sentence in str(caught.value) and '{"prompt": "…", "answer": "…"}' in str(caught.value)
