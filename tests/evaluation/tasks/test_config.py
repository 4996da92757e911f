# SPDX-License-Identifier: Apache-2.0
"""Task files: what is data is read, what would run code is refused by name, and nothing of it runs."""

from __future__ import annotations

import json

import pytest

from slim_core.evaluation.errors import EvaluationError
from slim_core.evaluation.tasks import Asking, load_tasks
from slim_core.inference import Passage


DOCS = [
    {"question": "What is 2 + 2?", "options": ["3", "4 {x}"], "answer": 1, "name": "four"},
    {"question": "What is Lima's country?", "options": ["Peru", "Chile"], "answer": 0, "name": "Peru"},
]
GOOD = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "docs.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{options}}",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}],
}


@pytest.fixture
def write(tmp_path):
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS), encoding="utf-8")

    def write(changes=None, text=None):
        path = tmp_path / "mine.yaml"
        # JSON is YAML.
        path.write_text(json.dumps(GOOD | (changes or {})) if text is None else text, encoding="utf-8")
        return str(path)

    return write


def test_a_task_file_is_read(write):
    (task,) = load_tasks([write()], Asking())
    first, second = task.items
    assert first.options == (
        Passage("Question: What is 2 + 2?\nAnswer:", " 3"),
        Passage("Question: What is 2 + 2?\nAnswer:", " 4 {x}"),
    )
    assert (first.right, second.right, task.chance) == ((1,), (0,), 0.5)
    assert (task.name, task.scoring, task.metric, task.kind) == ("mine", "likelihood", "acc", "downstream")
    (general,) = load_tasks([f"general:{write()}"], Asking())
    assert general.kind == "general" and general.fingerprint == task.fingerprint


def test_written_answers_filters_and_solved_examples(write):
    written = {
        "output_type": "generate_until",
        "doc_to_target": "name",
        "doc_to_choice": None,
        "metric_list": [{"metric": "exact_match", "ignore_case": True, "regexes_to_ignore": ["\\.$"]}],
        "filter_list": [{"name": "a", "filter": [{"function": "regex", "regex_pattern": "is (\\S+)"}]}],
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 7, "do_sample": False},
        "num_fewshot": 1,
        "description": "Short answers.\n",
    }
    (task,) = load_tasks([write(written)], Asking())
    first, second = task.items
    # The first example that is not the question itself.
    assert first.prompt == (
        "Short answers.\nQuestion: What is Lima's country?\nAnswer: Peru\n\nQuestion: What is 2 + 2?\nAnswer:"
    )
    assert second.prompt.startswith("Short answers.\nQuestion: What is 2 + 2?\nAnswer: four\n\n")
    assert (task.until, task.max_new_tokens, task.scoring) == (("\n",), 7, "written")
    marks = [first.expected.mark(text) for text in ("It is Four.", "four", "is five", "is four or is five")]
    assert marks == [1.0, 0.0, 0.0, 1.0]


def test_letters_are_told_from_texts(write):
    letters = {"doc_to_choice": ["A", "B"], "doc_to_text": "{{question}} A. {{options[0]}} B. {{options[1]}}"}
    (task,) = load_tasks([write(letters)], Asking())
    assert task.scoring == "letters" and task.items[0].options[1].words == " B"


def test_what_comes_before_may_be_what_differs(write):
    """As lm-evaluation-harness scores WinoGrande: digits in doc_to_text are the right option's number."""
    blank = {
        "doc_to_text": "{{answer}}",
        "doc_to_choice": "{{['The ' ~ options[0], 'The ' ~ options[1]]}}",
        "doc_to_target": "it is",
    }
    (task,) = load_tasks([write(blank)], Asking())
    assert task.items[0].options == (Passage("The 3", " it is"), Passage("The 4 {x}", " it is"))
    assert task.items[0].right == (1,)


def test_includes_and_the_chat_template(write, tmp_path):
    (tmp_path / "_default").write_text(json.dumps(GOOD | {"task": None}), encoding="utf-8")
    path = write(text="include: _default\ntask: other\nmetadata: {title: Mine, kind: general, chat: true}\n")
    (task,) = load_tasks([path], Asking())
    assert (task.name, task.title, task.kind) == ("other", "Mine", "general")
    option = task.items[0].options[0]
    assert option.before[0].content == "Question: What is 2 + 2?\nAnswer:" and option.words == "3"


RUNS = "which is never done here"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"process_docs": "utils.f"}, f"`process_docs` runs code, {RUNS}; write it as jinja templates"),
        ({"process_results": "utils.f"}, f"`process_results` runs code, {RUNS}; name acc"),
        ({"class": "utils.Task"}, f"`class` runs code, {RUNS}"),
        ({"unsafe_code": True}, f"`unsafe_code` runs code, {RUNS}"),
        ({"dataset_kwargs": {"trust_remote_code": True}}, f"`trust_remote_code` runs code, {RUNS}; leave it out."),
        ({"metric_list": [{"metric": "bleu"}]}, "the metric 'bleu' is unknown; multiple_choice has acc and"),
        ({"output_type": "loglikelihood_rolling"}, "it must be multiple_choice or generate_until."),
        ({"group": "mine", "task": ["a", "b"]}, "`group` is not read; leave it out, or name the tasks of a group one"),
        ({"made_up": 1}, "`made_up` is unknown; a task file may have task,"),
        ({"num_fewshot": "five"}, "`num_fewshot` must be of type int, not str."),
        ({"doc_to_text": None}, "mine.yaml has no `doc_to_text`; a task needs dataset_path, doc_to_text"),
        ({"doc_to_choice": None}, "mine.yaml has no `doc_to_choice`"),
        ({"doc_to_text": "{{ nothing }}"}, "docs.jsonl, line 1: the template '{{ nothing }}' fails: 'nothing' is und"),
        ({"doc_to_text": "{{ question"}, "line 1: the template '{{ question' fails:"),
        (
            {"doc_to_text": "{{ ().__class__.__bases__ }}"},
            "fails: access to attribute '__class__' of 'tuple' object is",
        ),
        ({"doc_to_text": "{% set x = options.append('5') %}"}, "fails: "),
        ({"doc_to_choice": "{{ question }}"}, "`doc_to_choice` must give a list such as {{choices.text}}"),
        ({"doc_to_choice": "__import__('os').system('true')"}, "`doc_to_choice` must give a list such as"),
        ({"doc_to_target": 2}, "the right answer 2 is not one of the 2 options."),
        ({"doc_to_target": "name"}, "line 1: the right answer 'four' is not one of the 2 options."),
        ({"dataset_kwargs": {"data_files": {"train": "docs.jsonl"}}}, "`data_files` has no test, only train."),
        ({"dataset_kwargs": {"data_files": {"test": "none.jsonl"}}}, "There is no file "),
        ({"fewshot_config": {"sampler": "random"}}, "the sampler 'random' is unknown; it must be first_n."),
        ({"generation_kwargs": {"do_sample": True}}, "answers are greedy here"),
        ({"repeats": 3}, "answers are greedy here, so `repeats` must be 1."),
        ({"metadata": {"kind": "other"}}, "`kind` is 'other'; it must be downstream or general."),
        ({"num_fewshot": 5}, "there are 1 solved examples for docs.jsonl, line 1, but 5 are needed."),
    ],
)
def test_what_cannot_be_a_task_is_one_sentence(write, changes, sentence):
    with pytest.raises(EvaluationError) as caught:
        load_tasks([write(changes)], Asking())
    assert sentence in str(caught.value) and str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "task: a\ndoc_to_text: !function utils.f\n",
            "mine.yaml, line 2: `!function utils.f` runs code from the file, which is never done here;",
        ),
        ("a: !!python/object/apply:os.system ['true']", "mine.yaml, line 1: this is not YAML with plain values only"),
        ("a: [", "line 1: this is not YAML with plain values only"),
        ("- a\n- b\n", "mine.yaml must hold `key: value` lines"),
        ("include: ../other.yaml\n", "`include` must name a file in the same folder, not '../other.yaml'."),
        ("include: mine.yaml\n", "`include` must name a file in the same folder, not 'mine.yaml'."),
        ("include: none.yaml\n", "The task file none.yaml cannot be read: no such file or directory"),
    ],
)
def test_files_that_are_no_task_files(write, text, sentence):
    with pytest.raises(EvaluationError) as caught:
        load_tasks([write(text=text)], Asking())
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["made_up"], "There is no task 'made_up'; the tasks are paper, commonsense_qa,"),
        (["none.yaml"], "The task file none.yaml cannot be read: no such file or directory; name a readable one."),
        (["none.jsonl"], "There is no file none.jsonl; check the path"),
        (["none.txt"], "The text none.txt cannot be read: no such file or directory"),
        (["instructions", "instructions"], "There are two tasks named instructions; name each once."),
        ([], "No task was named; name one with --tasks."),
    ],
)
def test_names_that_are_none(names, sentence):
    with pytest.raises(EvaluationError) as caught:
        load_tasks(names, Asking())
    assert sentence in str(caught.value)


def test_questions_are_drawn_alike_and_in_order(write, tmp_path):
    many = "".join(json.dumps(DOCS[0] | {"question": f"{n}?"}) + "\n" for n in range(50))
    (tmp_path / "docs.jsonl").write_text(many, encoding="utf-8")
    (some,), (again,) = (load_tasks([write()], Asking(limit=10)) for _ in range(2))
    assert some.fingerprint == again.fingerprint and len(some.items) == 10
    places = [int(item.options[0].before.split()[1].removesuffix("?")) for item in some.items]
    assert places == sorted(places) and places[-1] > 10
