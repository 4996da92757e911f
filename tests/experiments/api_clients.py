# SPDX-License-Identifier: Apache-2.0
"""What clients of the OpenAI-compatible API do, each from its own address, and what is wrong with what they get."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai

from slim_core.paths import DEMO


MODELS = ("base", "lora", "slim")
# Of tasks that the adapters were trained on, and of others.
QUESTIONS = [
    each["prompt"] for pair in json.loads((DEMO / "examples.json").read_text("utf-8"))["pairs"] for each in pair
]
# What a client does with each answer: a sentence that turns it away is an answer too.
ANSWERED, AWAY, LOST = "answered", "turned away with a sentence", "lost"
WRONG = (
    ({"model": "other"}, 404),
    ({"max_tokens": 10**9}, 400),
    ({"messages": []}, 400),
    ({"messages": [{"role": "user", "content": "word " * 5000}]}, 400),
    ({"tools": [{"type": "function"}]}, 400),
    ({"temperature": "warm"}, 400),
)


class Client:
    """One client. Its methods ask once, and say what came of it.

    Args:
        url: of the API.
        number: of the client, from which it gets an address on this machine.
        expected: answers that were given when nobody else asked, by what was asked for; a client that asks alone
            fills it.
    """

    def __init__(self, url: str, number: int, expected: dict[Any, Any]) -> None:
        transport = httpx.HTTPTransport(local_address=f"127.0.{1 + number // 250}.{1 + number % 250}")
        self._http = httpx.Client(transport=transport, timeout=600)
        self._client = openai.OpenAI(base_url=url, api_key="any", max_retries=0, http_client=self._http)
        self._number, self._expected = number, expected
        self._talk: list[dict[str, str]] = []
        self.ways: tuple[Callable[[int], str], ...] = (
            self.whole, self.stream, self.log_probs, self.stop, self.talk,
            self.leave, self.leave_unread, self.sample, self.forge,
        )  # fmt: skip

    def act(self, number: int) -> str:
        """One request of the client's own way, in words."""
        try:
            return self.ways[self._number % len(self.ways)](number)
        except openai.RateLimitError:
            return AWAY
        except (openai.APIError, httpx.HTTPError, IndexError) as error:
            return f"{LOST}: {type(error).__name__} {error}"

    def close(self) -> None:
        self._http.close()

    def _chat(self, number: int, **options: Any) -> Any:
        messages = [{"role": "user", "content": QUESTIONS[number // len(MODELS) % len(QUESTIONS)]}]
        options = {"model": MODELS[number % len(MODELS)], "messages": messages, "temperature": 0} | options
        return self._client.chat.completions.create(**options)

    def _compared(self, key: Any, answer: Any) -> str:
        if answer == self._expected.setdefault(key, answer):
            return ANSWERED
        return f"{LOST}: another answer to {key}: {answer!r}, not {self._expected[key]!r}"

    def _key(self, number: int) -> tuple[int, int]:
        return number % len(MODELS), number // len(MODELS) % len(QUESTIONS)

    def whole(self, number: int) -> str:
        """A chat's answer."""
        return self._compared(self._key(number), self._chat(number).choices[0].message.content)

    def stream(self, number: int) -> str:
        """The same, piece by piece."""
        pieces = list(self._chat(number, stream=True, stream_options={"include_usage": True}))
        text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        if pieces[-1].usage is None:
            return f"{LOST}: a stream without its end"
        return self._compared(self._key(number), text)

    def log_probs(self, number: int) -> str:
        """The same with the likeliest tokens, whose numbers differ by rounding in a larger batch."""
        choice = self._chat(number, logprobs=True, top_logprobs=5).choices[0]
        text = "".join(entry.token for entry in choice.logprobs.content)
        if text.strip() != choice.message.content.strip():
            return f"{LOST}: log-probabilities of {text!r}, not of {choice.message.content!r}"
        return self._compared(self._key(number), choice.message.content)

    def stop(self, number: int) -> str:
        """Up to its first e."""
        text = self._chat(number, stop=["e"]).choices[0].message.content
        return self._compared((*self._key(number), "e"), text)

    def talk(self, number: int) -> str:
        """The next turn of a conversation, which begins anew when the model cannot read more."""
        self._talk.append({"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]})
        try:
            answer = self._client.chat.completions.create(model="slim", messages=self._talk, temperature=0)
        except openai.BadRequestError as error:
            self._talk = []
            return (
                "conversations that became too long" if error.code == "context_length_exceeded" else f"{LOST}: {error}"
            )
        except openai.RateLimitError:
            self._talk.pop()
            raise
        self._talk.append({"role": "assistant", "content": answer.choices[0].message.content})
        key = tuple(message["content"] for message in self._talk[:-1])
        return self._compared(key, self._talk[-1]["content"]) if len(key) == 1 else ANSWERED

    def _long(self, number: int, **options: Any) -> Any:
        """Texts that go on for long."""
        options = {"max_tokens": 100, "temperature": 1.5} | options
        return self._client.completions.create(model=MODELS[number % 3], prompt=["A day", "The"], **options)

    def leave(self, number: int) -> str:
        """Leaves in the middle of a stream."""
        with self._long(number, stream=True) as pieces:
            for _, _ in zip(range(number % 5), pieces, strict=False):
                pass
        return "left in the middle"

    def leave_unread(self, number: int) -> str:
        """Leaves before a whole answer is there."""
        try:
            self._long(number, timeout=0.2 + number % 7 / 10)
        except openai.APITimeoutError:
            return "left before the end"
        return ANSWERED

    def sample(self, number: int) -> str:
        """Texts with a seed, which decides on every token, and the log-probabilities of the prompt."""
        seed = number % 10
        options = {"seed": seed, "n": 2, "echo": True, "logprobs": 1, "max_tokens": 16, "temperature": 1.0}
        answer = self._client.completions.create(model=MODELS[seed % 3], prompt=["The sky", "A dog is"], **options)
        return self._compared(f"seed {seed}", [choice.text for choice in answer.choices])

    def forge(self, number: int) -> str:
        """What cannot be answered, and a look at the models."""
        fields, status = WRONG[number % len(WRONG)]
        try:
            self._chat(number, extra_body=fields)
        except openai.RateLimitError:
            raise
        except openai.APIStatusError as error:
            if error.status_code != status or not error.body:
                return f"{LOST}: {error}"
            names = [model.id for model in self._client.models.list()]
            return "refused with a sentence" if names == list(MODELS) else f"{LOST}: models {names}"
        return f"{LOST}: {fields} was answered"


def answers_alone(url: str) -> dict[Any, Any]:
    """Answers to all that is compared, asked one after another."""
    expected: dict[Any, Any] = {}
    client = Client(url, 0, expected)
    for number in range(len(MODELS) * len(QUESTIONS)):
        client.whole(number)
        client.stop(number)
    for number in range(10):
        client.sample(number)
    client.close()
    return expected
