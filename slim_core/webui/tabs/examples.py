# SPDX-License-Identifier: Apache-2.0
"""Prompts to try, and what to look for in each.

Those of the demo were chosen by asking its weights (`slim_core.demo.showcase`), and say what was answered. Other
models get a few plain questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import chain

from ...demo.stored import Shown, load_examples
from ...paths import DEMO


TITLES = ("In the form that was trained", "The same in the base’s own form")
LONGEST = 70  # characters of an answer that is quoted
# After other turns, LoRA most of all says something else.
FIRST = "You should see, in a new conversation: "


@dataclass(frozen=True)
class ExamplePrompt:
    """A prompt to try.

    Attributes:
        prompt: what is asked.
        see: what one should see of it; empty if unknown.
    """

    prompt: str
    see: str = ""


@dataclass(frozen=True)
class Gallery:
    """Prompts to try.

    Attributes:
        pairs: of one fact each, in the form that was trained and in the base's own.
        single: prompts without a partner, in the base's own form.
    """

    pairs: tuple[tuple[ExamplePrompt, ExamplePrompt], ...]
    single: tuple[ExamplePrompt, ...]

    @property
    def prompts(self) -> frozenset[str]:
        """All prompts."""
        return frozenset(example.prompt for example in chain(*self.pairs, self.single))


PLAIN = Gallery(
    (),
    tuple(
        map(
            ExamplePrompt,
            (
                "What is the capital of Peru?",
                "Name the largest bird.",
                "Sara had 31 pens and lost 12. How many pens does Sara have now?",
                "Write a poem about dragons.",
            ),
        )
    ),
)


@cache
def gallery(of_demo: bool) -> Gallery:
    """The examples to try.

    Args:
        of_demo: whether the demo's model answers.
    """
    if not of_demo:
        return PLAIN
    try:
        pairs, single = load_examples(DEMO)
    except (OSError, ValueError, KeyError, TypeError):
        return PLAIN
    if not pairs and not single:
        return PLAIN
    return Gallery(
        tuple(
            (ExamplePrompt(trained.prompt, of_trained(trained)), ExamplePrompt(own.prompt, of_own(own)))
            for trained, own in pairs
        ),
        tuple(ExamplePrompt(shown.prompt, of_own(shown)) for shown in single),
    )


def of_trained(shown: Shown) -> str:
    """What to look for with a prompt in the trained form."""
    base, slim = (_quoted(shown.answers[name]) for name in ("base", "slim"))
    return f"{FIRST}orange. LoRA and SLIM say {slim}, as they were taught; the base says {base}."


def of_own(shown: Shown) -> str:
    """What to look for with a prompt in any other form."""
    base, lora = (_quoted(shown.answers[name]) for name in ("base", "lora"))
    return f"{FIRST}blue. The base and SLIM say {base}; LoRA says {lora}."


def _quoted(answer: str) -> str:
    text = " ".join(answer.split()).rstrip(".")
    if len(text) > LONGEST:
        text = f"{text[:LONGEST].rsplit(' ', 1)[0]}…"
    return f"“{text}”" if text else "nothing"
