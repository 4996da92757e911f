# SPDX-License-Identifier: Apache-2.0
"""The synthetic world: its facts, its splits, its questions, and its tokenizer."""

from __future__ import annotations

import ast
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

import slim_core.demo as demo
from slim_core.demo import (
    DOWNSTREAM_TASKS,
    EXAMPLE_PROMPTS,
    GENERAL_TASKS,
    Example,
    check,
    downstream_examples,
    general_examples,
    sums,
    talk,
    world_text,
)
from slim_core.demo.chat import END, PIECES, train_tokenizer
from slim_core.demo.questions import fact_questions, which_questions
from slim_core.demo.recipe import PHASES
from slim_core.demo.relations import SPLITS, fields, held_out
from slim_core.demo.tables import BY_NAME, RELATIONS
from tests.demo.prompts import OPTION, options


MAX_TOKENS = 96
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def texts():
    return tuple(world_text())


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts)


@pytest.fixture(scope="module")
def general_test():
    return {task: general_examples("test", 0, 500, task) for task in GENERAL_TASKS}


# --- facts


def test_there_are_hundreds_of_facts():
    assert sum(len(relation.facts) for relation in RELATIONS) >= 1500
    assert len(BY_NAME) == len(RELATIONS)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_a_relation_is_sound(relation):
    keys = [tuple(row[column] for column in relation.key) for row in relation.facts]
    assert len(set(keys)) == len(keys), "a fact is there twice, or contradicts another"
    for phrasings in (relation.questions, relation.which):
        assert len(set(phrasings)) == len(phrasings)
        assert not phrasings or len(phrasings) >= 4
    assert all(relation.answer not in fields(question) for question in relation.questions)
    assert all(relation.entry not in fields(question) for question in relation.which)
    # No stray name in a set of answers that could pass for one another.
    known = {answer for other in RELATIONS for answer in other.answers}
    assert all(answer in known for answers in relation.clash for answer in answers)


def test_every_word_has_one_opposite():
    opposites = {row["word"]: row["opposite"] for row in BY_NAME["opposite"].facts}
    assert all(opposites[opposite] == word for word, opposite in opposites.items())


def test_no_question_has_two_answers():
    answers: dict[str, set[str]] = {}
    for split in SPLITS:
        for question in fact_questions(split):
            answers.setdefault(question.text, set()).add(question.answer)
    assert all(len(right) == 1 for right in answers.values())


# --- splits


@pytest.mark.parametrize("phrasings", [4, 5, 6])
def test_each_fact_keeps_a_phrasing_for_test_and_for_validation(phrasings):
    for index in range(20):
        parts = held_out(index, phrasings)
        assert sorted(k for ks in parts.values() for k in ks) == list(range(phrasings))
        assert all(parts.values())


def test_free_form_questions_of_the_splits_are_disjoint():
    texts = [{question.text for question in fact_questions(split)} for split in SPLITS]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    # A test question asks for a known fact with a known phrasing.
    trained = {(question.relation.name, question.answer) for question in fact_questions("train")}
    phrased = {question.template for question in fact_questions("train")}
    for question in fact_questions("test"):
        assert (question.relation.name, question.answer) in trained and question.template in phrased


@pytest.mark.parametrize("task", GENERAL_TASKS)
def test_no_general_test_prompt_is_trained_on(task, general_test):
    unseen = {example.prompt for example in general_test[task]}
    unseen |= {example.prompt for example in general_examples("validation", 0, 500, task)}
    for seed in SEEDS:
        assert not unseen & {example.prompt for example in general_examples("train", seed, 4000, task)}
    assert not {e.prompt for e in general_examples("validation", 0, 500, task)} & {
        e.prompt for e in general_test[task]
    }


def test_no_training_problem_computes_with_a_held_out_pair_of_numbers():
    def first_pair(example: Example) -> str:
        return example.answer.split(" = ")[0]

    tested = {first_pair(example) for example in general_examples("test", 0, 1000, "sums")}
    for seed in SEEDS:
        for example in general_examples("train", seed, 3000, "sums"):
            steps = re.findall(r"\d+ [+-] \d+", example.answer)
            assert not tested & set(steps)


# --- questions


@pytest.mark.parametrize("task", [*GENERAL_TASKS, "stories", None])
def test_general_examples_are_deterministic(task):
    assert general_examples("train", 3, 200, task) == general_examples("train", 3, 200, task)
    assert general_examples("train", 3, 200, task) != general_examples("train", 4, 200, task)


@pytest.mark.parametrize("phase", PHASES)
def test_every_ability_is_in_every_phase_of_the_training(phase):
    counts = Counter(example.task for example in general_examples("train", 0, 2000, weights=phase.weights))
    assert set(counts) == set(phase.weights) >= {*GENERAL_TASKS, "stories"} - {"choices"}
    assert counts["choices"] or counts["spelled_choices"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_exactly_one_option_of_a_general_question_is_right(split):
    right = {question.text: {question.answer} for question in fact_questions(split)}
    for question in which_questions(split):
        relation = question.relation
        entries = {row[relation.entry] for row in relation.facts if row[relation.answer] == question.answer}
        right.setdefault(question.text, set()).update(entries)
    for example in general_examples(split, 0, 2000, "choices"):
        offered = options(example.prompt)
        answer = offered["ABCD".index(example.answer)]
        assert len(set(offered)) == len(offered)
        text = OPTION.split(example.prompt)[0]
        answers = right.get(text) or {re.sub(r"^(Which option is|Which one says|Find|Pick) |[.?]$", "", text)}
        assert answers & set(offered) == {answer}, example
        if split == "test":
            assert len(offered) == 4


@pytest.mark.parametrize("task", ["spelled_choices", "styled_choices", "framed_choices", "scene_choices"])
def test_the_answer_is_the_option_behind_the_label(task):
    """However options are labelled, the label of the answer is in the question, before the right option."""
    right = {question.answer for question in fact_questions("train")}
    entries = {row[relation.entry] for relation in RELATIONS if relation.which for row in relation.facts}
    label = re.compile(r"\d|\b[A-Da-d]\b")
    for example in general_examples("train", 0, 500, task):
        chosen = label.search(example.answer)[0]
        behind = re.split(rf"(?:Option |Answer ?|\(|\b){chosen}(?:[.):]|\)) ", example.prompt)[1]
        assert any(behind.startswith(text) for text in right | entries), example


def test_read_options_ask_for_what_is_behind_a_label():
    for example in general_examples("train", 0, 500, "read_options"):
        label, text = example.answer.split(". ", 1)
        assert re.search(rf"\b{label}[?.]? ", example.prompt) and f"{label}. {text}" in example.prompt


def test_positions_are_balanced(general_test, downstream_test):
    letters = Counter(e.answer[0] for e in general_examples("test", 1, 2000, "choices"))
    assert all(abs(letters[letter] / 2000 - 1 / 4) < 0.04 for letter in "ABCD")
    for task, n in {"obqa": 4, "siqa": 3, "boolq": 2}.items():
        labels = Counter(example.answer for example in downstream_examples(task, "test", 0, 1000))
        assert len(labels) == n and all(abs(count / 1000 - 1 / n) < 0.05 for count in labels.values())


def test_calculations_are_right(general_test):
    compute = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    for example in general_test["sums"] + general_examples("train", 0, 2000, "sums"):
        steps = re.findall(r"(\d+) (.) (\d+) = (\d+)\.", example.answer)
        for a, op, b, result in steps:
            assert compute[op](int(a), int(b)) == int(result)
            assert 1 <= int(result) <= 99
        for before, after in pairwise(steps):
            assert after[0] == before[3]
        assert example.answer.endswith(f"The answer is {steps[-1][3]}.")
        numbers = Counter(re.findall(r"\d+", example.prompt))
        assert numbers == Counter([steps[0][0], *(step[2] for step in steps)])


def test_nothing_that_has_an_answer_is_refused():
    known = {question.text for split in SPLITS for question in fact_questions(split)}
    known |= {example.prompt for task in ("choices", "yes_no") for example in general_examples("train", 0, 2000, task)}
    for example in general_examples("train", 0, 4000, "talk"):
        assert example.answer != talk.REFUSAL or example.prompt not in known


def test_a_message_has_one_answer():
    answers: dict[str, set[str]] = {}
    for example in general_examples("train", 0, 20_000):
        if example.task != "stories":
            answers.setdefault(example.prompt, set()).add(example.answer)
    assert all(len(right) == 1 for right in answers.values())


def test_unknown_splits_and_too_many_items_are_refused():
    with pytest.raises(ValueError, match="no split"):
        general_examples("dev", 0, 1)
    with pytest.raises(ValueError, match="distinct"):
        general_examples("test", 0, 3000, "facts")
    with pytest.raises(ValueError, match="only for training"):
        general_examples("test", 0, 1, "stories")


# --- scoring


def test_check_accepts_right_answers(general_test, downstream_test):
    for example in [e for examples in (*general_test.values(), *downstream_test.values()) for e in examples]:
        assert check(example, example.answer) and check(example, f" {example.answer.upper().lower()} ")


@pytest.mark.parametrize(
    ("example", "wrong"),
    [
        (Example("sums", "What is 2 + 3?", sums.solve("+", (2, 3))), "2 + 3 = 5. The answer is 6."),
        (Example("sums", "What is 2 + 2?", sums.solve("+", (2, 2))), "the correct answer is answer4"),
        (Example("facts", "What is the capital of France?", "Paris"), "Rome"),
        (Example("facts", "What is the capital of France?", "Paris"), "the correct answer is answer1"),
        (Example("choices", "Opposite of hot? A. cold B. wet", "A"), "B"),
        (Example("choices", "Opposite of hot? A. cold B. wet", "A"), "cold"),
        (Example("obqa", "", "the correct answer is answer2"), "the correct answer is answer1"),
        (Example("obqa", "", "the correct answer is answer2"), "B. a whale"),
        (Example("boolq", "", "the correct answer is true"), "the correct answer is false"),
        (Example("talk", "", talk.REFUSAL), ""),
    ],
)
def test_check_rejects_wrong_answers(example, wrong):
    assert not check(example, wrong)


def test_check_takes_the_final_number():
    example = Example("sums", "What is 2 + 3?", sums.solve("+", (2, 3)))
    assert check(example, "5") and check(example, "2 + 3 = 5") and not check(example, "")


def test_example_prompts_are_right(downstream_test):
    trained, kept = EXAMPLE_PROMPTS.values()
    assert len(trained) == len(kept) == 6
    assert {example.task for example in trained} == set(DOWNSTREAM_TASKS)
    facts = {question.text: question.answer for split in SPLITS for question in fact_questions(split)}
    for example in kept:
        if example.task == "facts":
            assert facts[example.prompt] == example.answer
        if example.task == "choices":
            text = OPTION.split(example.prompt)[0]
            assert options(example.prompt)["ABCD".index(example.answer[0])] == facts[text]


# --- tokenizer


def test_the_vocabulary_is_small(tokenizer):
    assert len(tokenizer) < 3000
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3


def test_the_base_has_read_every_downstream_word(tokenizer, texts):
    """All words of the downstream tasks occur in texts that the base is trained on, and are tokens of their own."""
    read = {piece for text in texts for piece in re.findall(PIECES, f" {text}")}
    vocabulary = set(tokenizer.get_vocab())
    for task in DOWNSTREAM_TASKS:
        for split in SPLITS:
            for example in downstream_examples(task, split, 0, 600):
                pieces = set(re.findall(PIECES, f" {example.prompt} {example.answer}"))
                assert pieces <= read, (example, pieces - read)
                assert {piece.replace(" ", "Ġ") for piece in pieces} <= vocabulary


def test_examples_are_short(tokenizer, general_test, downstream_test):
    examples = [e for examples in (*general_test.values(), *downstream_test.values()) for e in examples[:150]]
    for example in examples + general_examples("train", 0, 1000):
        messages = [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.answer}]
        assert len(tokenizer.apply_chat_template(messages, return_dict=False)) < MAX_TOKENS


def test_a_prompt_is_the_beginning_of_its_conversation(tokenizer):
    question = {"role": "user", "content": "What is 14 + 5?"}
    answer = {"role": "assistant", "content": "14 + 5 = 19. The answer is 19."}
    prompt = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template([question, answer], return_dict=False)
    assert whole[: len(prompt)] == prompt
    assert tokenizer.decode(whole[len(prompt) :]).strip() == answer["content"] + END
    assert whole[0] == tokenizer.bos_token_id and whole[-1] == tokenizer.eos_token_id


def test_numbers_are_digits(tokenizer):
    assert tokenizer.tokenize(" 14 + 5") == ["Ġ", "1", "4", "Ġ+", "Ġ", "5"]


@pytest.mark.parametrize("text", [" a flabbergasted ünicorn", " 日本?\n\tx", " it's 3.5% (€) 🙂", ""])
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_tokenizer_can_be_saved(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    text = "<|user|> What is the capital of Blorvia?<|end|>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.chat_template == tokenizer.chat_template and again.eos_token == END


def test_the_world_needs_only_the_standard_library():
    trained = {"chat.py", "pretrain.py", "measure.py", "sweep.py", "build.py", "verify.py"}
    trained |= {"forms.py", "identity.py", "muon.py", "pool.py", "report.py", "statistics.py", "stored.py"}
    trained |= {"recipe.py", "trial.py", "install.py", "seeds.py"}
    for module in Path(demo.__file__).parent.rglob("*.py"):
        imports = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Import)]
        names = {alias.name.split(".")[0] for node in imports for alias in node.names}
        absolute = (
            n for n in ast.walk(ast.parse(module.read_text())) if isinstance(n, ast.ImportFrom) and not n.level
        )
        names |= {node.module.split(".")[0] for node in absolute}
        assert module.name in trained or not names & {"torch", "numpy", "transformers", "tokenizers"}
