# SPDX-License-Identifier: Apache-2.0
"""The sets of the paper, in the layouts in which they are found, and in each way of scoring them."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from slim_core.evaluation.errors import EvaluationError
from slim_core.evaluation.tasks import GENERAL, PAPER, Asking, load_tasks, training_questions
from slim_core.inference import Passage


ARC = (
    "Please choose the correct answer to the question: What do plants need?\n\nAnswer1: light Answer2: noise "
    "Answer3: sand\n\nAnswer format: answer1/answer2/answer3"
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """One question of each set, as its own authors or LLM-Adapters write it."""
    root = tmp_path_factory.mktemp("sets")

    def write(path, *lines):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (root / path).write_text("\n".join(texts) + "\n", encoding="utf-8")

    texts = ("bank", "pond", "wall", "sky", "hat")
    options = [{"label": label, "text": text} for label, text in zip("ABCDE", texts, strict=True)]
    question = {"question_concept": "fish", "choices": options, "stem": "Where do fish live?"}
    write("commonsenseqa/dev_rand_split.jsonl", {"answerKey": "B", "id": "1", "question": question})
    write("hellaswag/hellaswag_val.jsonl", {
        "ind": 0, "activity_label": "Roofs", "ctx": "A man sits on a roof. he", "label": 1,
        "endings": ["flies [x] away.", "works [title] hard."],
    })  # fmt: skip
    write("winogrande/dev.jsonl", {
        "sentence": "Sarah beat Maria so _ was glad.", "option1": "Sarah", "option2": "Maria", "answer": "1"
    })  # fmt: skip
    for name in ("ARC-Easy", "ARC-Challenge"):
        write(f"llm-adapters/{name}/test.json", [{"instruction": ARC, "output": "", "answer": "answer1"}])
    write(
        "openbookqa/test.tsv",
        "ID\tQuestion Stem\tChoices\tComplete Question\tAnswer Key",
        'q1\tPredators "eat"\t(A) lions (B) humans (C) bunnies (D) grass\tall of it\tC',
    )
    write("socialiqa/dev.jsonl", {
        "context": "Ann fell.", "question": "How does Ann feel?", "answerA": "sad", "answerB": "hurt", "answerC": "new"
    })  # fmt: skip
    write("socialiqa/dev-labels.lst", "2")
    write(
        "boolq-with-passage/dev.jsonl", {"question": "is it wet", "title": "t", "answer": "True", "passage": "It is."}
    )
    (root / "mmlu/data/test").mkdir(parents=True)
    (root / "mmlu/data/dev").mkdir(parents=True)
    for part, names in (("test", ["anatomy", "law"]), ("dev", ["anatomy", "law"])):
        for name in names:
            with (root / f"mmlu/data/{part}/{name}_{part}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow([f'What, "{name}"\nof {part}?', 0, 4, 2, 6, "B"])
    write("gsm8k/test.jsonl", {"question": "What is 3 + 4?", "answer": "It is.\n#### 1,007"})
    write("gsm8k/train.jsonl", *[{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(6)])
    write("piqa/valid.jsonl", {"goal": "Open a jar.", "sol1": "Turn it.", "sol2": "Sit on it."})
    write("piqa/valid-labels.lst", "0")
    return root


def loaded(name, sets, **options):
    (task,) = load_tasks([name], Asking(**options), data_dir=sets)
    return task


def test_all_eleven_as_the_harness_scores_them(sets):
    tasks = load_tasks(["paper"], Asking(), data_dir=sets)
    assert [task.name for task in tasks] == list(PAPER)
    assert [task.name for task in tasks if task.kind == "general"] == list(GENERAL)
    by_name = {task.name: task for task in tasks}
    assert {name for name, task in by_name.items() if task.scoring == "letters"} == {"commonsense_qa", "mmlu"}
    assert {name for name, task in by_name.items() if task.metric == "acc_norm"} == {
        "arc_easy", "arc_challenge", "hellaswag", "openbookqa", "piqa"
    }  # fmt: skip
    rights = {name: task.items[0].right for name, task in by_name.items() if name != "gsm8k"}
    assert rights == {
        "commonsense_qa": (1,), "hellaswag": (1,), "winogrande": (0,), "arc_easy": (0,), "arc_challenge": (0,),
        "openbookqa": (2,), "social_iqa": (1,), "boolq": (1,), "mmlu": (1,), "piqa": (0,),
    }  # fmt: skip
    hellaswag = by_name["hellaswag"].items[0].options
    assert hellaswag[0].before == "Roofs: A man sits on a roof. He"
    assert [option.words for option in hellaswag] == [" flies away.", " works. hard."]
    assert by_name["winogrande"].items[0].options[1] == Passage("Sarah beat Maria so Maria", " was glad.")
    assert by_name["mmlu"].items[1].options[1].before == 'What, "law"\nof test?\nA. 0\nB. 4\nC. 2\nD. 6\nAnswer:'
    assert by_name["boolq"].items[0].options[1].before == "It is.\nQuestion: is it wet?\nAnswer:"
    gsm8k = by_name["gsm8k"].items[0]
    assert gsm8k.prompt.count("Question:") == 6 and gsm8k.prompt.endswith("Question: What is 3 + 4?\nAnswer:")
    answers = ("3 + 4 is 7, so 1007", "#### 1,007", "$1007.", "7", "none", "It is 1007, not 5")
    assert [gsm8k.expected.mark(text) for text in answers] == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_solved_examples_are_of_the_same_subject(sets):
    anatomy, law = loaded("mmlu", sets, shots=1).items
    assert anatomy.options[0].before.startswith('What, "anatomy"\nof dev?') and "B\n\n" in anatomy.options[0].before
    assert law.options[0].before.startswith('What, "law"\nof dev?')


@pytest.mark.parametrize("name", [name for name in PAPER if name != "gsm8k"])
def test_letters_and_written_answers_of_the_same_questions(sets, name):
    likely, lettered, written = (
        loaded(name, sets, form=form).items[0] for form in ("likelihood", "letters", "written")
    )
    assert lettered.shown == tuple("ABCDE"[: len(lettered.shown)]) and lettered.right == likely.right
    before = {option.before for option in lettered.options}
    assert len(before) == 1 and "\nB. " in before.pop()
    assert all(len(option.words.strip()) > 1 or option.words.strip().isdigit() for option in likely.options)
    label = written.expected.targets[0]
    assert written.expected.mark(f"The correct answer is {label.upper()}.") == 1.0
    assert written.expected.mark(f"not{label}") == 0.0 and written.expected.mark("") == 0.0
    assert label in written.prompt[0].content.rpartition("Answer format: ")[2].split("/")


def test_the_written_form_is_that_of_the_fine_tuning_data(sets):
    assert loaded("arc_easy", sets, form="written").items[0].prompt[0].content == ARC
    assert loaded("boolq", sets, form="written").items[0].prompt[0].content == (
        "Please answer the following question with true or false, question: is it wet?\n\nAnswer format: true/false"
    )


@pytest.mark.parametrize(
    ("name", "form", "sentence"),
    [
        ("gsm8k", "letters", "gsm8k can only be scored by written"),
        ("piqa", "standard", "There is no piqa/valid.jsonl in "),
        ("mmlu", "standard", "There is no mmlu/data/test with files such as anatomy_test.csv in "),
        ("openbookqa", "standard", "A folder for --data-dir has openbookqa/test.tsv."),
    ],
)
def test_sets_that_are_not_there(sets, tmp_path, name, form, sentence):
    with pytest.raises(EvaluationError) as caught:
        loaded(name, tmp_path if form == "standard" else sets, form=form)
    assert sentence in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(EvaluationError, match=r"There is no folder .*; name one with data sets in --data-dir"):
        load_tasks(["piqa"], Asking(), data_dir=tmp_path / "none")


def test_broken_sets(tmp_path):
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa/valid.jsonl").write_text('{"goal": "a", "sol1": "b", "sol2": "c"}\n')
    (tmp_path / "piqa/valid-labels.lst").write_text("0\n1\n")
    (tmp_path / "openbookqa").mkdir()
    (tmp_path / "openbookqa/test.tsv").write_text("ID\n1\tstem\tno options\tall\tA\n")
    (tmp_path / "llm-adapters/ARC-Easy").mkdir(parents=True)
    (tmp_path / "llm-adapters/ARC-Easy/test.json").write_text('[{"instruction": "Hi", "answer": "answer1"}]')
    for name, sentence in (
        ("piqa", "piqa/valid.jsonl has 1 records, but piqa/valid-labels.lst has 2."),
        ("openbookqa", "test.tsv, line 2: this is not an OpenBookQA question"),
        ("arc_easy", "test.json, line 1: this is not a record of the expected data set"),
    ):
        with pytest.raises(EvaluationError) as caught:
            load_tasks([name], Asking(), data_dir=tmp_path)
        assert sentence in str(caught.value)


@pytest.mark.real_data
@pytest.mark.skipif("SLIM_TEST_DATA" not in os.environ, reason="SLIM_TEST_DATA names no folder")
def test_the_real_sets():
    folder = Path(os.environ["SLIM_TEST_DATA"])
    sizes = {"hellaswag": 10042, "winogrande": 1267, "arc_easy": 2376, "arc_challenge": 1172, "openbookqa": 500}
    sizes |= {"boolq": 3270, "mmlu": 14042, "gsm8k": 1319, "piqa": 1838}
    tasks = load_tasks(list(sizes), Asking(), data_dir=folder)
    assert {task.name: len(task.items) for task in tasks} == sizes
    # Its training questions too, one of which has "(D)" twice.
    assert len(training_questions("openbookqa", folder)) == 4957


def test_an_option_may_hold_the_letter_of_the_last_one_again(tmp_path):
    (tmp_path / "openbookqa").mkdir()
    text = "ID\n1\tstem\t(A) one (B) two (C) three (D) four (D) five\tall\tB\n"
    (tmp_path / "openbookqa/train.tsv").write_text(text)
    (item,) = training_questions("openbookqa", tmp_path)
    assert "Answer3: three Answer4: four (D) five" in item.prompt[-1].content
    assert item.expected.targets[0] == "answer2"
