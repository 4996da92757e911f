# SPDX-License-Identifier: Apache-2.0
"""Export, and import of files that may be anything."""

import copy
import itertools
import json
from dataclasses import replace

import pytest
import torch

from slim_core.inference import AS_TRAINED, GateSetting
from slim_core.webui.limits import LimitError
from slim_core.webui.state.columns import columns
from slim_core.webui.state.session import Session, Turn
from slim_core.webui.wire import exchange
from slim_core.webui.wire.verdict import verdicts
from slim_core.webui.words import base_name
from tests.webui.conftest import ask


def write(tmp_path, data):
    path = tmp_path / "file.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def read(path, backend, most=10**7):
    base = base_name(backend.engine.info)
    turns, other_base = exchange.load(path, base, columns(Session(), backend), most, itertools.count(100).__next__)
    assert not other_base
    return turns


def test_round_trip(answered, backend, tmp_path):
    ask(answered, backend, "A second\nline", "Be brief.")
    turns = read(write(tmp_path, exchange.dump(answered, backend)), backend)
    assert [turn.id for turn in turns] == [100, 101]
    for old, new in zip(answered.turns, turns, strict=True):
        assert (new.prompt, new.system) == (old.prompt, old.system)
        for name, before in old.answers.items():
            after = new.answers[name]
            assert after.step == before.step
            assert (after.sampling, after.token_ids) == (before.sampling, before.token_ids)
            if before.routing is not None:
                assert after.routing.tokens == before.routing.tokens
                torch.testing.assert_close(after.routing.weights, before.routing.weights, atol=1e-3, rtol=0)
                assert torch.equal(after.routing.cluster, before.routing.cluster)
        torch.testing.assert_close(new.drift.variants[0].kl, old.drift.variants[0].kl)
    session = Session()
    session.turns = turns
    for name in ("gate", "reference"):
        assert torch.equal(
            getattr(turns[0].answers["slim"].routing, name), getattr(answered.turns[0].answers["slim"].routing, name)
        )
    assert verdicts(session, turns[0]) == verdicts(answered, answered.turns[0]) != []
    again = json.loads(exchange.dump(session, backend))
    first = json.loads(exchange.dump(answered, backend))
    assert again["turns"] == first["turns"]


def test_a_gate_that_was_changed_comes_back_as_that(backend, tmp_path):
    session = Session()
    session.gates = {"slim": GateSetting(0.0, 0.9)}
    ask(session, backend, "Hello there")
    (turn,) = read(write(tmp_path, exchange.dump(session, backend)), backend)
    assert turn.answers["slim"].gate == GateSetting(0.0, 0.9) and verdicts(session, turn)[0]["kind"] == "open"
    assert turn.answers["base"].gate == AS_TRAINED


def test_what_no_gate_closes_comes_back(answered, backend, tmp_path):
    answer = answered.turns[0].answers["slim"]
    answer.routing = replace(answer.routing, complete=False)
    turn = read(write(tmp_path, exchange.dump(answered, backend)), backend)[0]
    assert not turn.answers["slim"].routing.complete


def test_files_of_before_there_were_gates_come_without_a_verdict(answered, backend, tmp_path):
    data = json.loads(exchange.dump(answered, backend))
    for answer in data["turns"][0]["answers"].values():
        del answer["strength"], answer["quantile"], answer["variant"]["strength"]
        for name in ("gate", "reference", "turn"):
            (answer["routing"] or {}).pop(name, None)
    (turn,) = read(write(tmp_path, data), backend)
    assert turn.answers["slim"].routing is not None and turn.answers["slim"].verdict() is None
    assert verdicts(answered, turn) == []
    assert turn.answers["slim"].variant == backend.variants[2]


def test_a_conversation_with_another_base_is_shown_and_not_continued(answered, backend, tmp_path):
    data = json.loads(exchange.dump(answered, backend)) | {"base": "Qwen/Other"}
    loaded = columns(Session(), backend)
    path = write(tmp_path, data)
    (turn,), other_base = exchange.load(
        path, base_name(backend.engine.info), loaded, 10**7, itertools.count().__next__
    )
    assert other_base == "Qwen/Other"
    assert {answer.variant.label for answer in turn.answers.values()} == {
        f"{variant.label} (Qwen/Other)" for variant in loaded.values()
    }
    session = Session()
    session.turns = [turn]
    asked = Turn(99, "And now?", "", {})
    session.turns.append(asked)
    assert [message.content for message in session.messages("base", asked, loaded["base"].name)] == ["And now?"]


def test_whatever_a_model_writes_comes_back(answered, backend, tmp_path):
    odd = "a\x00b\x0b\x1b[0m\u202e " * 20_000
    answer = answered.turns[0].answers["slim"]
    answer.step = replace(answer.step, text=odd, finish_reason="error", error="bell \x07")
    turn = read(write(tmp_path, exchange.dump(answered, backend)), backend)[0]
    assert turn.answers["slim"].step.text == odd and turn.answers["slim"].step.error == "bell \x07"


def put(data, path, value):
    for key in path[:-1]:
        data = data[key]
    if value is KeyError:
        del data[path[-1]]
    else:
        data[path[-1]] = value


TURN = ("turns", 0)
SLIM = (*TURN, "answers", "slim")
ROUTING = (*SLIM, "routing")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "other"),
        (("version",), 2),
        (("version",), "\ud800"),
        (("base",), None),
        (("base",), "\ud800"),
        (("turns",), {}),
        (("turns",), [{}] * 201),
        (TURN, "text"),
        ((*TURN, "prompt"), ""),
        ((*TURN, "prompt"), "a\u0000"),
        ((*TURN, "system"), 5),
        ((*TURN, "answers"), []),
        ((*TURN, "answers", "evil"), {}),
        ((*SLIM, "text"), None),
        ((*SLIM, "text"), "\ud800"),
        ((*SLIM, "error"), 5),
        ((*SLIM, "finish_reason"), None),
        ((*SLIM, "finish_reason"), ["end"]),
        ((*SLIM, "tokens"), "many"),
        ((*SLIM, "tokens"), 1e300),
        ((*SLIM, "seconds"), -1),
        ((*SLIM, "token_ids"), [1.5]),
        ((*SLIM, "token_ids"), [2**40]),
        ((*SLIM, "sampling", "seed"), -1),
        ((*SLIM, "sampling", "evil"), 1),
        ((*SLIM, "sampling"), None),
        ((*SLIM, "variant"), "SLIM"),
        ((*SLIM, "variant", "kind"), ["slim"]),
        ((*SLIM, "variant", "label"), 5),
        ((*SLIM, "variant", "label"), "a\u0000"),
        ((*SLIM, "variant", "parameters"), -1),
        ((*SLIM, "variant", "bytes"), 1e3),
        ((*SLIM, "variant", "detail"), KeyError),
        ((*ROUTING, "weights", "base64"), "!!!"),
        ((*ROUTING, "weights", "base64"), ""),
        ((*ROUTING, "weights", "dtype"), "object"),
        ((*ROUTING, "weights", "shape"), [10**9, 10**9, 10]),
        ((*ROUTING, "weights", "shape"), [-1, 5, 5]),
        ((*ROUTING, "weights"), None),
        ((*SLIM, "strength"), -1),
        ((*SLIM, "strength"), "strong"),
        ((*SLIM, "quantile"), 2),
        ((*SLIM, "variant", "strength"), [4]),
        ((*ROUTING, "gate", "base64"), "!!!"),
        ((*ROUTING, "gate"), None),
        ((*ROUTING, "reference"), KeyError),
        ((*ROUTING, "turn"), 10**6),
        ((*ROUTING, "turn"), None),
        ((*ROUTING, "num_experts"), 0),
        ((*ROUTING, "num_experts"), 99),
        ((*ROUTING, "prompt_tokens"), 10**6),
        ((*ROUTING, "blocks"), [0]),
        ((*ROUTING, "modules"), []),
        ((*ROUTING, "tokens"), ["a"]),
        ((*ROUTING, "tokens", 0), 7),
        ((*TURN, "drift"), []),
        ((*TURN, "drift", "variants", 0, "variant"), "evil"),
        ((*TURN, "drift", "variants", 0, "kl"), [1]),
        ((*TURN, "drift", "variants", 0, "log_ratio", 0), "x"),
        ((*TURN, "drift", "tokens"), KeyError),
    ],
    ids=lambda x: ".".join(map(str, x)) if isinstance(x, tuple) else None,
)
def test_bad_files_get_a_sentence(answered, backend, tmp_path, path, value):
    data = copy.deepcopy(json.loads(exchange.dump(answered, backend)))
    put(data, path, value)
    with pytest.raises(LimitError) as error:
        read(write(tmp_path, data), backend)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("turns",), [{}] * 201, "turns in the conversation must be a list of at most 200."),
        ((*TURN, "answers"), KeyError, "turns[0].answers in the conversation is missing."),
        (SLIM, [], "An answer in the conversation must be an object."),
        ((*SLIM, "seconds"), 10**400, "seconds in the conversation must be a number."),
        ((*SLIM, "tokens"), -1, "tokens in the conversation must be at least 0."),
        ((*ROUTING, "tokens", 1), "\ud800", "routing.tokens[1] in the conversation must be text."),
    ],
    ids=lambda x: ".".join(map(str, x)) if isinstance(x, tuple) else "",
)
def test_the_sentence_names_the_field_and_what_it_must_be(answered, backend, tmp_path, path, value, sentence):
    data = json.loads(exchange.dump(answered, backend))
    put(data, path, value)
    with pytest.raises(LimitError) as error:
        read(write(tmp_path, data), backend)
    assert str(error.value) == sentence


def test_answers_of_another_adapter_are_shown_but_not_continued(answered, backend, tmp_path):
    data = json.loads(exchange.dump(answered, backend))
    data["turns"][0]["answers"]["lora"]["variant"] |= {"name": "slim", "label": " Their\u200b own ", "parameters": 7}
    del data["turns"][0]["answers"]["slim"]["variant"]  # as files had none at first
    (turn,) = read(write(tmp_path, data), backend)
    assert turn.answers["lora"].variant.label == "Their own"
    session = Session()
    session.turns = [turn]
    new = Turn(2, "And now?", "", {})
    assert [m.role for m in session.messages("lora", new, "lora")] == ["user"]
    assert [m.role for m in session.messages("slim", new, "slim")] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "NaN",
        "[" * 100_000,
        '{"format": "slim-compare"}',
        "\ufeff{}",
        '{"format": %s}' % ("1" * 5000),
    ],
)
def test_no_conversation_at_all(backend, tmp_path, text):
    with pytest.raises(LimitError):
        read(write(tmp_path, text), backend)


def test_a_drift_of_nothing_known(answered, backend, tmp_path):
    data = json.loads(exchange.dump(answered, backend))
    for variant in ([], {}, None, "gone", 5):
        data["turns"][0]["drift"] = {"tokens": [], "variants": [{"variant": variant, "log_ratio": [], "kl": []}]}
        with pytest.raises(LimitError, match="unknown variant"):
            read(write(tmp_path, data), backend)


def test_nan_weights_and_size_and_missing_file(answered, backend, tmp_path):
    answered.turns[0].answers["slim"].routing.weights[0, 0, 0] = float("nan")
    with pytest.raises(LimitError, match="not finite"):
        read(write(tmp_path, exchange.dump(answered, backend)), backend)
    with pytest.raises(LimitError, match=r"has [\d,]+ bytes; at most 10 are read"):
        read(write(tmp_path, exchange.dump(answered, backend)), backend, most=10)
    for path in (tmp_path / "none.json", None, tmp_path):
        with pytest.raises(LimitError):
            read(path, backend)
