# SPDX-License-Identifier: Apache-2.0
"""The downstream tasks, in the form of the fine-tuning data of LLM-Adapters.

They ask about facts that the base knows, in scenes and in a form in which it has never been asked. Entries, people and
phrasings are split: a test question is about an entry and a person, and phrased in a way, that no training question of
the task uses. Its wrong options are other test entries, unless they are common answers such as feelings.
"""

from __future__ import annotations

from functools import partial
from random import Random

from .example import Example, Sampler, draw
from .families import OPTION_SPLITS, ChoiceFamily, ClaimFamily
from .relations import Row
from .scenes import BOOLQ, OBQA, PEOPLE, SIQA
from .tables import BY_NAME


CHOICE_FORM = "Please choose the correct answer to the question: {question} {options} Answer format: {labels}"
CLAIM_FORM = "Please answer the following question with true or false, question: {question} Answer format: true/false"
ANSWER = "the correct answer is {}"


def _phrase(family: ChoiceFamily | ClaimFamily, split: str, rng: Random, row: Row) -> str:
    """A question about a row, with names from the split."""
    phrasing = rng.choice(family.test_phrasings if split == "test" else family.phrasings)
    name, other = (person["name"] for person in rng.sample(PEOPLE[split], 2))
    return phrasing.format(**{"name": name, "other": other, **row})


def choice_about(task: str, family: ChoiceFamily, row: Row, size: int, split: str, rng: Random) -> Example:
    """A question about a row, with `size` options."""
    right = family.option.format(**row)
    options = [right, *rng.sample(family.wrong(OPTION_SPLITS[split], row), size - 1)]
    rng.shuffle(options)
    prompt = CHOICE_FORM.format(
        question=_phrase(family, split, rng, row),
        options=" ".join(f"Answer{number}: {option}" for number, option in enumerate(options, 1)),
        labels="/".join(f"answer{number}" for number in range(1, size + 1)),
    )
    return Example(task, prompt, ANSWER.format(f"answer{options.index(right) + 1}"))


def claim_about(family: ClaimFamily, row: Row, truth: bool, split: str, rng: Random) -> Example:
    """A question whether something is true of a row."""
    relation = BY_NAME[family.relation]
    claimed = row[relation.answer] if truth else rng.choice(relation.wrong(row[relation.answer]))
    question = _phrase(family, split, rng, {**row, relation.answer: claimed})
    return Example("boolq", CLAIM_FORM.format(question=question), ANSWER.format("true" if truth else "false"))


def _choice(task: str, families: tuple[ChoiceFamily, ...], size: int, split: str, rng: Random) -> Example:
    family = rng.choice(families)
    return choice_about(task, family, rng.choice(family.entries[split]), size, split, rng)


def _claim(truth: bool, split: str, rng: Random) -> Example:
    family = rng.choice(BOOLQ)
    return claim_about(family, rng.choice(family.entries[split]), truth, split, rng)


# The samplers of a task get equal shares of its examples: drawn together, most distinct claims would be false ones,
# because there are more of them.
SAMPLERS: dict[str, tuple[Sampler, ...]] = {
    "obqa": (partial(_choice, "obqa", OBQA, 4),),
    "siqa": (partial(_choice, "siqa", SIQA, 3),),
    "boolq": (partial(_claim, True), partial(_claim, False)),
}
DOWNSTREAM_TASKS = tuple(SAMPLERS)


def downstream_examples(task: str, split: str, seed: int, n: int) -> list[Example]:
    """`n` distinct examples of "obqa", "siqa" or "boolq" from "train", "validation" or "test"."""
    rng = Random(f"{task} {split} {seed}")
    samplers = SAMPLERS[task]
    examples = []
    for turn, sample in enumerate(samplers):
        examples += draw(sample, split, rng, (n + turn) // len(samplers), distinct=True)
    rng.shuffle(examples)
    return examples
