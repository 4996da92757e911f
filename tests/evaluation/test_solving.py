# SPDX-License-Identifier: Apache-2.0
"""Items solved by all variants in one batch, against each adapter loaded by PEFT alone: by a plain loop, and by
lm-evaluation-harness.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from slim_core.base.errors import EngineError
from slim_core.baselines import KINDS
from slim_core.evaluation.errors import EvaluationError
from slim_core.evaluation.journal import Journal
from slim_core.evaluation.participants import attach_adapter
from slim_core.evaluation.run import fingerprint_of, run_tasks, units_of, unsolved
from slim_core.evaluation.solving import solve
from slim_core.evaluation.tasks import Asking, load_tasks
from slim_core.inference import load_engine
from slim_core.many import Respondent
from tests.baselines.small import stirred
from tests.inference.conftest import folders


__all__ = ["folders"]
NAMES = ("base", "lora", "slim")
DOCS = [
    {"question": "What is the capital of Peru?", "options": ["Lima", "the sea", "red"], "answer": 0},
    {"question": "The sea is", "options": ["blue", "the sun and the capital"], "answer": 0},
    {"question": "They say the sun is", "options": ["a", "red", "so", "what"], "answer": 1},
    {"question": "It is Lima, they say. The sun is red. What is it?", "options": ["a", "b"], "answer": 1},
]
CHOICE = {
    "task": "choice",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{options}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
}
WRITTEN = CHOICE | {
    "task": "written",
    "output_type": "generate_until",
    "doc_to_choice": None,
    "doc_to_target": "{{options[0]}}",
    "generation_kwargs": {"until": ["."], "max_gen_toks": 6, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}],
    "filter_list": [
        {"name": "word", "filter": [{"function": "regex", "regex_pattern": "(\\w+)"}, {"function": "take_first"}]}
    ],
}


@pytest.fixture(scope="module")
def engine(folders):
    return load_engine(folders.base, lora=folders.lora, slim=folders.slim, device="cpu")


@pytest.fixture(scope="module")
def respondents(engine):
    return [Respondent(variant.name, variant) for variant in engine.variants]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Task files that lm-evaluation-harness reads too."""
    root = tmp_path_factory.mktemp("tasks")
    (root / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS), encoding="utf-8")
    for config in (CHOICE, WRITTEN):
        own = config | {"dataset_kwargs": {"data_files": {"test": str(root / "docs.jsonl")}}}
        text = json.dumps({key: value for key, value in own.items() if value is not None})
        (root / f"{config['task']}.yaml").write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def tasks(files):
    return load_tasks([str(files / "choice.yaml"), str(files / "written.yaml")], Asking())


@pytest.fixture(scope="module")
def models(folders):
    """The base, and each adapter on a base of its own, loaded by PEFT."""
    loaded = {"base": AutoModelForCausalLM.from_pretrained(folders.base).eval()}
    for name in NAMES[1:]:
        base = AutoModelForCausalLM.from_pretrained(folders.base)
        loaded[name] = PeftModel.from_pretrained(base, getattr(folders, name)).eval()
    return loaded


def whole(text):
    """A text without a part of a character at its end, which the engine does not show."""
    return text.rstrip("\ufffd").strip()


def test_questions_as_a_plain_loop_solves_them(engine, respondents, tasks, models, folders):
    tokenizer = AutoTokenizer.from_pretrained(folders.base)
    samples = solve(engine, respondents, tasks[0], range(len(DOCS)))
    for sample, doc in zip(samples, DOCS, strict=True):
        for name in NAMES:
            sums = []
            for option in doc["options"]:
                context = tokenizer.encode(f"Question: {doc['question']}\nAnswer:")
                whole = tokenizer.encode(f"Question: {doc['question']}\nAnswer: {option}")
                with torch.inference_mode():
                    log_p = models[name](torch.tensor([whole])).logits[0].log_softmax(-1)
                sums.append(sum(float(log_p[i - 1, whole[i]]) for i in range(len(context), len(whole))))
            norms = [total / len(option) for total, option in zip(sums, doc["options"], strict=True)]
            answer = sample["answers"][name]
            assert answer["log_probs"] == pytest.approx(sums, abs=1e-4)
            assert answer["chosen"] == norms.index(max(norms))
            assert answer["mark"] == float(answer["chosen"] == doc["answer"])
        assert sample["answers"]["base"]["kl"] == 0.0 and sample["answers"]["lora"]["kl"] > 0
        assert len(sample["answers"]["slim"]["identity"]) == 2 and "identity" not in sample["answers"]["base"]


def test_written_answers_as_a_plain_loop_writes_them(engine, respondents, tasks, models, folders):
    tokenizer = AutoTokenizer.from_pretrained(folders.base)
    samples = solve(engine, respondents, tasks[1], range(len(DOCS)))
    for sample, doc in zip(samples, DOCS, strict=True):
        prompt = tokenizer.encode(f"Question: {doc['question']}\nAnswer:")
        for name in NAMES:
            ids = list(prompt)
            for _ in range(6):
                with torch.inference_mode():
                    token = int(models[name](torch.tensor([ids])).logits[0, -1].argmax())
                if token == tokenizer.eos_token_id:
                    break
                ids.append(token)
                if "." in tokenizer.decode(ids[len(prompt) :]):
                    break
            text = tokenizer.decode(ids[len(prompt) :]).split(".")[0]
            assert whole(sample["answers"][name]["text"]) == whole(text)
            assert sample["answers"][name]["mark"] == tasks[1].items[sample["id"]].expected.mark(text)


@pytest.fixture
def agrees(files, folders, monkeypatch):
    """Compares what a variant answered as a row with lm-evaluation-harness, run on its model alone."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import lm_eval  # takes seconds
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(files), include_defaults=False)
    tokenizer = AutoTokenizer.from_pretrained(folders.base)

    def compare(ours, name, alone):
        model = HFLM(pretrained=alone, tokenizer=tokenizer, batch_size=3, max_length=256)
        theirs = lm_eval.simple_evaluate(
            model=model, tasks=["choice", "written"], task_manager=manager, log_samples=True, bootstrap_iters=0
        )["samples"]
        assert len(theirs["choice"]) == len(theirs["written"]) == len(DOCS)
        for sample in theirs["choice"]:
            answer = ours["choice"][sample["doc_id"]]["answers"][name]
            assert answer["log_probs"] == pytest.approx(
                [float(response[0]) for response in sample["filtered_resps"]], abs=1e-4
            )
            assert answer["greedy"] == [bool(response[1]) for response in sample["filtered_resps"]]
            assert answer["mark"] == sample["acc_norm"]
        for sample in theirs["written"]:
            answer = ours["written"][sample["doc_id"]]["answers"][name]
            assert whole(answer["text"]) == whole(sample["resps"][0][0])
            assert answer["taken"] == sample["filtered_resps"][0] and answer["mark"] == sample["exact_match"]

    return compare


def test_sample_by_sample_as_the_harness_says(engine, respondents, tasks, models, agrees):
    """Each model alone in lm-evaluation-harness: the same likelihoods, choices, answers and marks."""
    ours = {task.name: solve(engine, respondents, task, range(len(DOCS))) for task in tasks}
    for name in NAMES:
        agrees(ours, name, models[name])


def test_rows_of_all_other_methods_are_what_the_harness_says_of_each_alone(folders, tasks, agrees, tmp_path):
    """One batch of the base and an adapter of every kind, DoRA too."""
    engine = load_engine(folders.base, device="cpu")
    respondents, alone = [Respondent("base", engine.variants[0])], {}
    for name in ("dora", *(method.name for method in KINDS.values())):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, of blocks that do not divide the channels
            model = alone[name] = stirred(name, AutoModelForCausalLM.from_pretrained(folders.base))
        model.save_pretrained(tmp_path / name)
        respondents.append(attach_adapter(engine, name, str(tmp_path / name)).respondent)
    ours = {task.name: solve(engine, respondents, task, range(len(DOCS))) for task in tasks}
    for name, model in alone.items():
        agrees(ours, name, model)
        assert all(sample["answers"][name]["kl"] > 0 for sample in ours["choice"]), "it is not the base"


def test_an_item_that_is_too_long_stops_no_other(engine, respondents, tmp_path):
    path = tmp_path / "q.jsonl"
    long = {"prompt": "Lima? " * 300, "answer": "Lima"}
    path.write_text("".join(json.dumps(record) + "\n" for record in ({"prompt": "Lima", "answer": "Peru"}, long)))
    (task,) = (replace(loaded, max_new_tokens=4) for loaded in load_tasks([str(path)], Asking()))
    fine, wrong = solve(engine, respondents, task, [0, 1])
    assert fine["answers"].keys() == set(NAMES) and "shorten it" in wrong["error"]
    assert fine == solve(engine, respondents, task, [0])[0]
    path.write_text(json.dumps(long) + "\n")
    (task,) = load_tasks([str(path)], Asking())
    journal = Journal(tmp_path / "j", "f", False)
    sentences = unsolved(run_tasks(engine, respondents, [task], journal, 4) | {"fine": [fine]})
    assert list(sentences) == ["q"] and sentences["q"].startswith("No item of q could be solved: The conversation has")


def test_the_loss_is_before_and_after_on_the_same_tokens(engine, respondents, models, folders, tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("The sea is blue and the sun is red.")
    (task,) = load_tasks([str(path)], Asking())
    (sample,) = solve(engine, respondents, task, [0])
    tokenizer = AutoTokenizer.from_pretrained(folders.base)
    ids = [tokenizer.bos_token_id, *tokenizer.encode(task.items[0].passage.words, add_special_tokens=False)]
    for name in NAMES:
        tokens = torch.tensor([ids])
        with torch.inference_mode():
            loss = float(models[name](tokens, labels=tokens).loss)  # transformers shifts the labels
        assert sample["answers"][name]["loss"] == pytest.approx(loss, abs=1e-4)
        assert sample["answers"][name]["tokens"] == len(ids) - 1


class Counting:
    """An engine that ends after so many calls, as a process does that is killed."""

    def __init__(self, engine, calls):
        self._engine, self.calls = engine, calls

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def score(self, *args, **kwargs):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self._engine.score(*args, **kwargs)


@pytest.mark.parametrize("calls", [0, 1, 2, 4])
def test_a_run_that_was_ended_goes_on_to_the_same_samples(engine, respondents, tasks, tmp_path, calls):
    key = fingerprint_of(engine, respondents, {}, tasks, 2)
    complete = run_tasks(engine, respondents, tasks, Journal(tmp_path / "whole", key, False), 2)
    path = tmp_path / "part"
    journal = Journal(path, key, False)
    with pytest.raises(KeyboardInterrupt):
        run_tasks(Counting(engine, calls), respondents, tasks, journal, 2)
    journal.close()
    # The power went while a line was written.
    with path.open("ab") as file:
        file.write(b'{"task": "choice", "unit": 9, "sam')
    again = Journal(path, key, True)
    seen = []
    assert run_tasks(engine, respondents, tasks, again, 2, seen.append) == complete
    assert [unit.number for unit in seen] == [unit.number for unit in units_of(tasks, 2)]
    again.close()
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()
    # Nothing is solved twice.
    done = Journal(path, key, True)
    assert run_tasks(Counting(engine, 0), respondents, tasks, done, 2) == complete


def test_journals_of_others(engine, respondents, tasks, tmp_path):
    path = tmp_path / "j"
    Journal(path, "one", False).close()
    for content, key, resume, sentence in (
        (None, "one", False, "is from an evaluation that was interrupted; continue it with --resume, or delete it."),
        (None, "two", True, "is from an evaluation of other adapters, tasks or settings"),
        ('{"a": 1}\n', "one", True, "is not a journal of an evaluation"),
    ):
        if content is not None:
            path.write_text(content)
        with pytest.raises(EvaluationError) as caught:
            Journal(path, key, resume)
        assert sentence in str(caught.value)
    with pytest.raises(EvaluationError, match="cannot be written: no such file or directory"):
        Journal(tmp_path / "none" / "j", "one", False)


def test_a_model_that_fails_everywhere_is_told_once(engine, respondents, tasks):
    class Broken:
        def score(self, *args, **kwargs):
            raise EngineError("The model failed.")

    with pytest.raises(EngineError, match=r"^The model failed\.$"):
        solve(Broken(), respondents, tasks[0], [0, 1])
