# SPDX-License-Identifier: Apache-2.0
"""Prompts for visitors that show what LoRA and SLIM do to the demo's base, chosen by asking all three.

A pair asks the same fact twice, in the form that was trained and in the base's own. Which prompts show a difference
depends on the weights, so they are chosen again whenever these change, with one command:
`python -m slim_core demo examples`. `tests/demo/test_showcase.py` fails while weights and examples disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from ..base.messages import Message
from ..inference import Engine, Row, Sampling, load_engine, verdict_of
from .downstream import DOWNSTREAM_TASKS, choice_about, claim_about
from .example import Example
from .measure import LONGEST_ANSWER, questions
from .relations import Relation
from .relations import Row as Fact
from .scenes import BOOLQ, OBQA, SIQA
from .stored import EXAMPLES, Shown, write_json
from .tables import BY_NAME
from .verify import SHIPPED, hashes
from .world import EXAMPLE_PROMPTS, GENERAL_TASKS, check


FORMAT = 1
BATCH = 16  # number of prompts asked together while selecting candidates
ENOUGH = 3  # examples of a subject to choose from
DRAWS = 2  # trained questions of a fact
QUESTIONS = 150  # general questions of each task that are tried
LONGEST = 110  # maximum characters of a question in the base's own form
ALONE = 5  # number of single prompts
# What a pair can be about: a family of trained questions, and the relation that asks for the same fact.
CHOICES = (
    ("siqa", 3, SIQA[0], "feeling"),
    ("obqa", 4, OBQA[1], "helper"),
    ("obqa", 4, OBQA[0], "tool for"),
    ("siqa", 3, SIQA[1], "trait"),
)
CLAIMS = {family.relation: family for family in BOOLQ}
# A pair for each line: about the first of its subjects that has an example.
WANTED = (
    ("helper", "tool for"),
    ("feeling", "trait"),
    ("workplace", "continent"),
    ("material", "animal kind", "food kind"),
)


class Replies(NamedTuple):
    """The answers of base, LoRA and SLIM to a prompt.

    Attributes:
        answers: of "base", "lora" and "slim".
        verdict: how SLIM's gate judged it: "like", "unlike" or "mixed".
        exact: whether every gate was 0 at every token, so that SLIM is the base by construction.
    """

    answers: dict[str, str]
    verdict: str
    exact: bool


def ask(engine: Engine, prompts: Sequence[str], together: int = 1) -> list[Replies]:
    """The greedy answers of base, LoRA and SLIM.

    Args:
        engine: with the variants "base", "lora" and "slim".
        prompts: each is a separate conversation.
        together: prompts in a batch; 1 asks as the app does.
    """
    replies = []
    for start in range(0, len(prompts), together):
        chosen = prompts[start : start + together]
        rows = [Row(name, (Message("user", p),), routing=name == "slim") for p in chosen for name in SHIPPED]
        *_, step = engine.answer(rows, Sampling(max_new_tokens=LONGEST_ANSWER), routing_every=math.inf)
        for i in range(len(chosen)):
            first, size = i * len(SHIPPED), len(SHIPPED)
            verdict = verdict_of(step.routing[first + size - 1])
            texts = {name: step.rows[first + k].text.strip() for k, name in enumerate(SHIPPED)}
            replies.append(Replies(texts, verdict.kind, verdict.exact))
    return replies


def shows(example: Example, replies: Replies) -> bool:
    """Whether an example shows what it is meant to show.

    In the trained form LoRA and SLIM are right and say so in the same words, which are not the base's. In any other
    form the base is right, LoRA is wrong, and SLIM gives the base's answer.
    """
    base, lora, slim = (replies.answers[name] for name in SHIPPED)
    if example.task in DOWNSTREAM_TASKS:
        return replies.verdict == "like" and check(example, slim) and lora == slim and base != slim
    return replies.verdict == "unlike" and check(example, base) and slim == base and not check(example, lora)


def choose(demo: Path, log: Any = lambda line: None) -> dict[str, Any]:
    """Choose examples for the weights in a folder.

    Args:
        demo: folder with `base`, `lora` and `slim`.
        log: called with a line on each candidate that was asked: whether it shows something, and what was said.

    Returns:
        What `examples.json` holds: "format", "sha256" of the weights, "pairs" of `Shown` (trained form, own form), and
        "alone", those without a partner. As many as show a difference, at most four pairs and five single ones.
    """
    engine = load_engine(demo / "base", lora=demo / "lora", slim=demo / "slim", device="cpu")
    candidates = (next(filter(None, (_pair(engine, name, log) for name in subjects)), None) for subjects in WANTED)
    pairs = list(filter(None, candidates))
    alone = _alone(engine, {own.prompt for _, own in pairs}, log)
    return {
        "format": FORMAT,
        "sha256": hashes(demo),
        "pairs": [list(map(asdict, pair)) for pair in pairs],
        "alone": list(map(asdict, alone)),
    }


def save_examples(chosen: dict[str, Any], demo: Path) -> Path:
    """Write `examples.json`."""
    write_json(demo / EXAMPLES, chosen)
    return demo / EXAMPLES


def _pair(engine: Engine, subject: str, log: Any) -> tuple[Shown, Shown] | None:
    """A fact whose question shows the intended difference in both forms."""
    own = list(_own(BY_NAME[subject], subject))
    best = _best(engine, [example for _, example in own], log)
    facts = {example.prompt: fact for fact, example in own}
    for shown in best:
        trained = _best(engine, list(_trained(subject, facts[shown.prompt])), log)
        if trained:
            return trained[0], shown
    return None


def _facts(subject: str) -> tuple[Fact, ...]:
    families = {name: family for _, _, family, name in CHOICES} | CLAIMS
    return families[subject].entries["test"]


def _own(relation: Relation, subject: str) -> Iterator[tuple[Fact, Example]]:
    """The facts of a subject in the base's own form."""
    for fact in _facts(subject):
        for template in relation.questions:
            yield fact, Example("facts", template.format(**fact), str(fact[relation.answer]))


def _trained(subject: str, fact: Fact) -> Iterator[Example]:
    rng = Random(f"examples {subject} {sorted(fact.items())}")
    for truth in (True, False) * DRAWS:
        if subject in CLAIMS:
            yield claim_about(CLAIMS[subject], fact, truth, "test", rng)
    for task, size, family, name in CHOICES:
        if name == subject:
            yield from (choice_about(task, family, fact, size, "test", rng) for _ in range(2 * DRAWS))


def _alone(engine: Engine, used: set[str], log: Any) -> list[Shown]:
    """One example of each general task, and more about well-known things."""
    known = [example for examples in EXAMPLE_PROMPTS.values() for example in examples if example.task in GENERAL_TASKS]
    chosen = [shown for shown in _best(engine, known, log) if shown.prompt not in used]
    for task in GENERAL_TASKS:
        if all(shown.task != task for shown in chosen):
            chosen += _best(engine, questions(task, "test", QUESTIONS), log)[:1]
    order = {task: place for place, task in enumerate(("facts", "sums", "choices", "yes_no", "talk"))}
    # One of each first.
    first: dict[str, Shown] = {}
    for shown in chosen:
        first.setdefault(shown.task, shown)
    rest = [shown for shown in chosen if shown is not first[shown.task]]
    return sorted([*first.values(), *rest][:ALONE], key=lambda shown: order[shown.task])


def _best(engine: Engine, examples: Iterable[Example], log: Any) -> list[Shown]:
    """The best few examples that show a difference: first those where SLIM is exactly the base, then short ones."""
    candidates = [e for e in examples if e.task in DOWNSTREAM_TASKS or len(e.prompt) <= LONGEST]
    suitable: list[tuple[Example, Replies]] = []
    for start in range(0, len(candidates), BATCH):
        chosen = candidates[start : start + BATCH]
        for example, replies in zip(chosen, ask(engine, [e.prompt for e in chosen], BATCH), strict=True):
            log(_line(example, replies))
            # A difference that vanishes with another batch size is not a good example.
            if shows(example, replies) and ask(engine, [example.prompt]) == [replies]:
                suitable.append((example, replies))
        if len(suitable) >= ENOUGH:
            break
    suitable.sort(key=lambda candidate: (not candidate[1].exact, _base_right(*candidate), len(candidate[0].prompt)))
    return [Shown(e.task, e.prompt, e.answer, h.answers, h.exact) for e, h in suitable]


def _base_right(example: Example, replies: Replies) -> bool:
    """Whether the base can also answer a trained question, which then shows less."""
    return example.task in DOWNSTREAM_TASKS and check(example, replies.answers["base"])


def _line(example: Example, replies: Replies) -> str:
    marks = (f"{name} {'✓' if check(example, text) else '✗'} {text!r}" for name, text in replies.answers.items())
    exact = ", exact" if replies.exact else ""
    return f"{'+' if shows(example, replies) else ' '} {replies.verdict}{exact} | {example.prompt} | " + " | ".join(
        marks
    )
