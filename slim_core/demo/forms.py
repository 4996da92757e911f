# SPDX-License-Identifier: Apache-2.0
"""The same questions in other forms, which a gate that has learned the trained form may not recognise."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .downstream import CHOICE_FORM, CLAIM_FORM, DOWNSTREAM_TASKS
from .example import Example
from .measure import Chat, asked, chat_message, questions
from .stories import sample as story
from .world import GENERAL_TASKS


FORMAT = " Answer format: "
# Other words around the question and the labels of its options.
PARAPHRASES = (
    "Pick the correct answer for this question: {question} Your answer must be one of these: {labels}",
    "Please select the right option. {question} Answer with {labels}",
    "Here is a question: {question} Which answer is correct? {labels}",
)
INSTRUCTIONS = (
    "You are a helpful assistant.",
    "Be short and clear.",
    "You are a teacher, and a child asks you.",
    "Think about it before you answer.",
)
TYPO_SHARE = 0.15  # of the words of four letters or more
EARLIER = 100  # questions of each task that an earlier turn may ask

Form = Callable[[Example, Random], Chat]


def _parts(example: Example) -> tuple[str, str]:
    """The question with its options, and the labels, without the training data's frame."""
    for form in (CHOICE_FORM, CLAIM_FORM):
        frame = form.split("{question}")[0]
        if example.prompt.startswith(frame):
            question, _, labels = example.prompt.removeprefix(frame).rpartition(FORMAT)
            return question, labels
    raise ValueError(f"{example.prompt!r} has no frame")


def _chat(prompt: str) -> Chat:
    return [chat_message("user", prompt)]


def _as_trained(example: Example, rng: Random) -> Chat:
    return asked(example)


def _paraphrase(example: Example, rng: Random) -> Chat:
    question, labels = _parts(example)
    return _chat(rng.choice(PARAPHRASES).format(question=question, labels=labels))


def _typos(example: Example, rng: Random) -> Chat:
    """Swaps two neighbouring letters inside some of the words."""
    words = example.prompt.split(" ")
    for i, word in enumerate(words):
        if word.isalpha() and len(word) >= 4 and rng.random() < TYPO_SHARE:
            at = rng.randrange(1, len(word) - 2)
            words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return _chat(" ".join(words))


def _no_frame(example: Example, rng: Random) -> Chat:
    return _chat(_parts(example)[0])


def _instruction(example: Example, rng: Random) -> Chat:
    """An instruction before it, in the user's message: the demo's template has no place for a system prompt."""
    return _chat(f"{rng.choice(INSTRUCTIONS)} {example.prompt}")


def _longer_text(example: Example, rng: Random) -> Chat:
    before, after = (story("train", rng).answer for _ in range(2))
    return _chat(f"{before} {example.prompt} {after}")


def _earlier(tasks: tuple[str, ...], rng: Random) -> Chat:
    """A turn with its right answer."""
    example = rng.choice(questions(rng.choice(tasks), "validation", EARLIER))
    return [*asked(example), chat_message("assistant", example.answer)]


def _third_turn(example: Example, rng: Random) -> Chat:
    return _earlier(GENERAL_TASKS, rng) + _earlier(GENERAL_TASKS, rng) + asked(example)


def _after_a_trained_turn(example: Example, rng: Random) -> Chat:
    return _earlier(DOWNSTREAM_TASKS, rng) + asked(example)


# Forms of the trained tasks, and of the general ones.
TRAINED_FORMS: dict[str, Form] = {
    "as trained": _as_trained,
    "paraphrase of the frame": _paraphrase,
    "typos": _typos,
    "no frame": _no_frame,
    "after an instruction": _instruction,
    "in a longer text": _longer_text,
    "third turn, after two general ones": _third_turn,
}
GENERAL_FORMS: dict[str, Form] = {"alone": _as_trained, "second turn, after a trained one": _after_a_trained_turn}
FORMS = {"downstream": (DOWNSTREAM_TASKS, TRAINED_FORMS), "general": (GENERAL_TASKS, GENERAL_FORMS)}


def asked_in_form(kind: str, form: str, split: str, n: int) -> tuple[list[Example], list[Chat]]:
    """`n` questions of each task of a kind, and the chats that ask them in a form; deterministic.

    Args:
        kind: "downstream" or "general".
        form: of `FORMS`.
        split: "validation" or "test".
        n: questions of each task.
    """
    tasks, forms = FORMS[kind]
    rng = Random(f"{kind} {form} {split}")
    examples = [example for task in tasks for example in questions(task, split, n)]
    return examples, [forms[form](example, rng) for example in examples]
