# SPDX-License-Identifier: Apache-2.0
"""Likelihoods of words in one batch, against each adapter loaded by PEFT alone, without padding."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from slim_core.base.errors import EngineError
from slim_core.inference import AS_TRAINED, GateSetting, Passage, Row, Sampling
from tests.inference.conftest import QUESTION, engine, folders, last
from tests.inference.probe import EngineProbe


__all__ = ["engine", "folders"]
NAMES = ("base", "lora", "slim")
PASSAGES = [
    Passage("What is the capital of Peru?", " It is Lima."),
    Passage("The sea is ", "blue"),
    Passage("", "the sun is red"),
    Passage(QUESTION, "Lima"),
    Passage("What is the capital of Peru? It is Lima. The sea is blue and the sun is red.", " They say"),
]


@pytest.fixture(scope="module")
def alone(folders):
    """What each variant says to token ids, one text at a time, loaded by PEFT itself."""
    tokenizer = AutoTokenizer.from_pretrained(folders.base)
    models = {"base": AutoModelForCausalLM.from_pretrained(folders.base).eval()}
    for name in NAMES[1:]:
        base = AutoModelForCausalLM.from_pretrained(folders.base)
        models[name] = PeftModel.from_pretrained(base, getattr(folders, name)).eval()

    @torch.inference_mode()
    def log_probs(name, ids):
        return models[name](torch.tensor([ids])).logits[0].log_softmax(-1)

    return tokenizer, log_probs


def encoded(tokenizer, passage):
    """The tokens as lm-evaluation-harness cuts them; of a conversation, as the chat template writes it."""
    if not isinstance(passage.before, str):
        chat = [message._asdict() for message in passage.before]
        before = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        return before, tokenizer.encode(passage.words, add_special_tokens=False)
    if not passage.before:
        return [tokenizer.bos_token_id], tokenizer.encode(passage.words, add_special_tokens=False)
    context, words = passage.before.rstrip(), passage.before[len(passage.before.rstrip()) :] + passage.words
    before = tokenizer.encode(context)
    return before, tokenizer.encode(context + words)[len(before) :]


@pytest.mark.parametrize("together", [True, False])
def test_each_variant_reads_as_if_it_were_alone(engine, alone, together):
    tokenizer, log_probs = alone
    readings = (
        engine.score(PASSAGES, NAMES) if together else [engine.score([passage], NAMES)[0] for passage in PASSAGES]
    )
    for passage, read in zip(PASSAGES, readings, strict=True):
        before, words = encoded(tokenizer, passage)
        all_base = log_probs("base", [*before, *words])[len(before) - 1 : -1]
        for row, name in enumerate(NAMES):
            own = log_probs(name, [*before, *words])[len(before) - 1 : -1]
            right = own.gather(-1, torch.tensor(words).unsqueeze(-1)).squeeze(-1)
            torch.testing.assert_close(read.log_probs[row], right, atol=2e-5, rtol=1e-4)
            assert read.greedy[row].tolist() == (own.argmax(-1) == torch.tensor(words)).tolist()
            kl = (all_base.exp() * (all_base - own)).sum(-1)
            torch.testing.assert_close(read.kl[row], kl, atol=2e-5, rtol=1e-4)
        assert float(read.kl[1].sum()) > 0.1  # the adapters do something


def test_options_of_one_token_cost_one_forward(engine, monkeypatch):
    calls = []
    kind = type(EngineProbe(engine).base)
    forward = kind.forward
    monkeypatch.setattr(
        kind,
        "forward",
        lambda self, *a, **k: calls.append(k["input_ids"].shape) or forward(self, *a, **k),
    )
    letters = [Passage("What is the capital of Peru? It is", word) for word in ("a", "s", "e")]
    readings = engine.score(letters, NAMES)
    assert len(calls) == 1 and calls[0][0] == len(NAMES)
    for passage, read in zip(letters, readings, strict=True):
        torch.testing.assert_close(read.log_probs, engine.score([passage], NAMES)[0].log_probs)


def test_gates_and_shares_past_lora(engine):
    passage = Passage(QUESTION, "Lima")
    own, opened = (
        engine.score([passage], ("slim",), gates, routing=True)[0] for gates in ((AS_TRAINED,), (GateSetting(0.0),))
    )
    record = engine.peek(Row("slim", QUESTION))
    blocks = sorted(set(record.blocks))
    expected = [
        record.identity[[i for i, b in enumerate(record.blocks) if b == block]].mean().item() for block in blocks
    ]
    assert own.identity[0] == pytest.approx(expected, abs=1e-5)
    assert own.kl is None and own.identity[0] != opened.identity[0]
    assert engine.score([passage], NAMES, routing=True)[0].identity.keys() == {1, 2}


def test_words_that_cannot_be_read(engine):
    for passage, variants, gates, sentence in (
        (Passage("Peru", ""), NAMES, (), "There are no words to read"),
        (Passage("Lima " * 300, "Peru"), NAMES, (), "shorten it"),
        (Passage("Peru", " Lima"), ("other",), (), "There is no variant named 'other'"),
        (Passage("Peru", " Lima"), NAMES, (AS_TRAINED,), "There are 3 readers but 1 gate settings."),
    ):
        with pytest.raises(EngineError, match=sentence):
            engine.score([passage], variants, gates)


def test_plain_text_goes_on_without_a_template(engine, alone):
    tokenizer, log_probs = alone
    text = "The sea is blue and the"
    step = last(engine, [Row(name, (), text=text) for name in NAMES], Sampling(max_new_tokens=4))
    for row in step.rows:
        ids = tokenizer.encode(text)
        assert row.prompt_tokens == len(ids)
        for token in row.token_ids:
            assert int(log_probs(row.variant, ids)[-1].argmax()) == token
            ids.append(token)
