# SPDX-License-Identifier: Apache-2.0
"""Texts that go on, and log-probabilities, as OpenAI's client gets them; the numbers against plain transformers."""

from __future__ import annotations

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from slim_core.inference import Message, Passage, Row, Sampling
from tests.serving.test_openai_api import ask


TEXT = "The sea is blue and the"


def complete(client, prompt=TEXT, model="base", **options):
    return client.completions.create(model=model, prompt=prompt, **({"temperature": 0, "max_tokens": 4} | options))


@pytest.fixture
def plain(folders):
    """Tokenizer, and the log-probabilities of a base that transformers loads by itself."""
    model = AutoModelForCausalLM.from_pretrained(folders.base).eval()

    @torch.inference_mode()
    def log_probs(ids):
        return model(torch.tensor([ids])).logits[0].float().log_softmax(-1)

    return AutoTokenizer.from_pretrained(folders.base), log_probs


def test_a_text_goes_on_as_the_model_continues_it(serve, real_engine, plain):
    tokenizer, log_probs = plain
    client = serve(real_engine).client()
    completion = complete(client, [TEXT, "What is"], n=1)
    assert completion.object == "text_completion" and completion.id.startswith("cmpl-") and completion.model == "base"
    for index, text in enumerate((TEXT, "What is")):
        ids = tokenizer.encode(text)
        for _ in range(4):
            ids.append(int(log_probs(ids)[-1].argmax()))
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        choice = completion.choices[index]
        # Nothing is lost between the two, neither a space nor half a character.
        assert (choice.index, text + choice.text.rstrip("\ufffd")) == (index, whole.rstrip("\ufffd"))
        assert choice.finish_reason == "length" and choice.logprobs is None
    prompts = sum(len(tokenizer.encode(text)) for text in (TEXT, "What is"))
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (prompts, 8)
    assert complete(client, echo=True).choices[0].text == TEXT + completion.choices[0].text
    # Tokens instead of texts say the same.
    ids = tokenizer.encode(TEXT)
    assert complete(client, ids).choices[0].text == completion.choices[0].text
    again = complete(client, [ids, tokenizer.encode("What is")])
    assert [choice.text for choice in again.choices] == [choice.text for choice in completion.choices]


def test_log_likelihoods_as_evaluation_harnesses_ask_for_them(serve, real_engine, plain):
    """All prompts with `echo`, one token more, which is dropped, and `logprobs=1`."""
    tokenizer, log_probs = plain
    pairs = [("What is the capital of Peru?", " It is Lima."), ("The sea is", " blue"), (TEXT, " sun")]
    client = serve(real_engine).client()
    whole = [tokenizer.encode(before + words) for before, words in pairs]
    for options in ({"max_tokens": 1}, {"max_tokens": 0}):
        completion = complete(client, whole, echo=True, logprobs=1, seed=1234, **options)
        for choice, ids, (before, words) in zip(completion.choices, whole, pairs, strict=True):
            start, more = len(tokenizer.encode(before)), options["max_tokens"]
            assert len(choice.logprobs.token_logprobs) == len(choice.logprobs.top_logprobs) == len(ids) + more
            end = len(ids)
            values = choice.logprobs.token_logprobs[start:end]
            right = log_probs(ids)[start - 1 : -1]
            expected = right.gather(-1, torch.tensor(ids[start:]).unsqueeze(-1)).squeeze(-1)
            assert values == pytest.approx(expected.tolist(), abs=1e-4)
            tops = choice.logprobs.top_logprobs[start:end]
            greedy = [value == max(top.values()) for value, top in zip(values, tops, strict=True)]
            assert greedy == (right.argmax(-1) == torch.tensor(ids[start:])).tolist()
            read = real_engine.score([Passage(before, words)], ["base"])[0]
            assert sum(values) == pytest.approx(float(read.log_probs.sum()), abs=1e-3)
            assert choice.logprobs.token_logprobs[0] is None and choice.logprobs.top_logprobs[0] is None
        assert completion.usage.completion_tokens == len(pairs) * more


def test_the_parts_of_log_probabilities(serve, real_engine, plain):
    tokenizer, log_probs = plain
    client = serve(real_engine).client()
    choice = complete(client, logprobs=2, echo=True, model="slim").choices[0]
    own = choice.logprobs
    assert "".join(own.tokens[:-4]) == TEXT
    assert own.text_offset == [sum(map(len, own.tokens[:i])) for i in range(len(own.tokens))]
    # Halves of characters look alike.
    assert all(1 <= len(top) <= 3 and own.tokens[i] in top for i, top in enumerate(own.top_logprobs) if top)
    # As the model gave them, whatever the sampling.
    ids = tokenizer.encode(TEXT)
    warm = complete(client, logprobs=0, temperature=2, seed=9, max_tokens=1, extra_body={"repetition_penalty": 2})
    (token,), (value,) = warm.choices[0].logprobs.tokens, warm.choices[0].logprobs.token_logprobs
    texts, right = real_engine.token_texts(range(len(tokenizer))), log_probs(ids)[-1].tolist()
    assert any(value == pytest.approx(right[i], abs=1e-4) for i, text in enumerate(texts) if text == token)
    assert warm.choices[0].logprobs.top_logprobs == [{token: value}]


def test_log_probabilities_of_a_message(serve, real_engine):
    client = serve(real_engine).client()
    completion = ask(client, [{"role": "user", "content": "What is"}], logprobs=True, top_logprobs=2, max_tokens=5)
    *_, step = real_engine.answer(
        [Row("slim", (Message("user", "What is"),), log_probs=2)], Sampling(max_new_tokens=5)
    )
    content, (row,) = completion.choices[0].logprobs.content, step.rows
    assert [entry.logprob for entry in content] == pytest.approx(
        [entry.log_prob for entry in row.log_probs[:5]], abs=1e-5
    )
    for entry, own in zip(content, row.log_probs, strict=False):
        assert entry.token == real_engine.token_texts([own.token])[0]
        assert entry.bytes is None or bytes(entry.bytes).decode() == entry.token
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx([v for _, v in own.likeliest], abs=1e-5)
    pieces = list(
        ask(client, [{"role": "user", "content": "What is"}], logprobs=True, top_logprobs=2, max_tokens=5, stream=True)
    )
    parts = [piece.choices[0].logprobs for piece in pieces]
    assert [entry for part in parts if part is not None for entry in part.content] == content
    assert ask(client, [{"role": "user", "content": "What is"}], max_tokens=5).choices[0].logprobs is None


@pytest.mark.parametrize("options", [{}, {"echo": True, "logprobs": 2}, {"n": 2, "temperature": 1, "seed": 3}])
def test_a_stream_says_the_same_as_the_whole(serve, real_engine, options):
    client = serve(real_engine).client()
    prompts = [TEXT, "What is"]
    whole = complete(client, prompts, **options)
    pieces = list(complete(client, prompts, stream=True, stream_options={"include_usage": True}, **options))
    assert pieces[-1].usage == whole.usage and {piece.object for piece in pieces} == {"text_completion"}
    for choice in whole.choices:
        own = [piece.choices[0] for piece in pieces if piece.choices and piece.choices[0].index == choice.index]
        assert "".join(piece.text for piece in own) == choice.text
        assert [piece.finish_reason for piece in own if piece.finish_reason] == [choice.finish_reason]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset") if choice.logprobs else ():
            parts = [getattr(piece.logprobs, name) for piece in own if piece.logprobs]
            assert [value for part in parts for value in part] == getattr(choice.logprobs, name)
    if "n" in options:
        assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
        assert whole.choices[0].text == complete(client, TEXT, temperature=1, seed=3).choices[0].text
        assert whole.choices[3].text == complete(client, "What is", temperature=1, seed=4).choices[0].text


SHAPES = "prompt must be a text, a list of texts, a list of token ids, or a list of lists of token ids, not "


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"suffix": "end"}, "suffix", "This server does not support suffix; leave it out."),
        ({"best_of": 3}, "best_of", "This server does not support best_of; leave it out."),
        ({"prompt": []}, "prompt", SHAPES),
        ({"prompt": [[]]}, "prompt", SHAPES),
        ({"prompt": [True]}, "prompt", SHAPES),
        ({"prompt": 5}, "prompt", SHAPES),
        ({"prompt": ["a"] * 65}, "prompt", "prompt must be a list of at most 64 items, not ["),
        ({"prompt": [3, 10**9]}, "prompt", "The model has no token 1000000000: its tokens are 0 to "),
        ({"prompt": [-1]}, "prompt", "The model has no token -1: its tokens are 0 to "),
        ({"prompt": [3] * 300}, "prompt", "The prompt has 300 tokens, but the model reads and writes at most 256"),
        ({"logprobs": 21}, "logprobs", "logprobs must be at most 20, not 21."),
        ({"logprobs": True}, "logprobs", "logprobs must be a whole number, not True."),
        ({"echo": "yes"}, "echo", "echo must be true or false, not 'yes'."),
        ({"prompt": [1.0, 2.0]}, "prompt", SHAPES),
        ({"prompt": ["", ""]}, "prompt", "There is no text to continue: write some."),
        ({"max_tokens": -1}, "max_tokens", "max_tokens must be at least 0, not -1."),
        ({"messages": []}, "messages", "messages is not a field that this server knows."),
        ({"max_tokens": 65}, "max_tokens", "An answer here has at most 64 tokens; 65 were asked for."),
    ],
)
def test_what_cannot_be_completed_is_a_sentence(serve, real_engine, fields, param, sentence):
    body = {"model": "slim", "prompt": TEXT} | fields
    response = httpx.post(f"{serve(real_engine).url}/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["message"].startswith(sentence)


def test_fields_of_one_do_not_pass_for_the_other(serve, engine):
    client = serve(engine).client()
    with pytest.raises(openai.BadRequestError, match="top_logprobs has no effect without logprobs"):
        ask(client, top_logprobs=2)
    with pytest.raises(openai.BadRequestError, match="echo is not a field that this server knows"):
        ask(client, extra_body={"echo": True})
    assert complete(client, "Hello there", max_tokens=None).usage.completion_tokens == engine.length
