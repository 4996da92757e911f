# SPDX-License-Identifier: Apache-2.0
"""Adapters from a folder come when a request names them, and go when others need the memory."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import openai
import pytest
import torch

from slim_core.inference import Message, Row, Sampling
from slim_core.serving import on_demand
from slim_core.serving.on_demand import AdaptersOnDemand
from slim_core.serving.openai_api import standalone_api
from tests.inference.conftest import TEXTS, save_lora, save_slim, tiny_base
from tests.serving.test_openai_api import ask
from tests.waiting import until


QUESTION = [{"role": "user", "content": TEXTS[0]}]
NO_LIMIT = 10**9


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """Three good adapters, and a broken one."""
    root = tmp_path_factory.mktemp("shelf")
    base = tiny_base()
    torch.manual_seed(7)
    save_lora(root / "law", base)
    save_slim(root / "poems", base)
    save_lora(root / "v1.2", base, r=2)
    shutil.copytree(root / "law", root / "broken")
    (root / "broken" / "adapter_model.safetensors").write_bytes(b"no weights")
    (root / "notes.txt").write_text("not an adapter")
    return root


@pytest.fixture
def service(real_engine, shelf) -> AdaptersOnDemand:
    return AdaptersOnDemand(real_engine, shelf, 2, NO_LIMIT, 8, 64)


@pytest.fixture
def client(service, serve_app):
    return serve_app(standalone_api(service)).client()


def text(client, model: str, **options) -> str:
    return ask(client, QUESTION, model, max_tokens=12, **options).choices[0].message.content


def test_the_folder_is_offered_and_nothing_is_loaded(client, service):
    names = ["base", "lora", "slim", "broken", "law", "poems", "v1.2"]
    assert [model.id for model in client.models.list()] == names
    assert client.models.retrieve("v1.2").description == "An adapter that is loaded when it is asked for."
    assert service.attached == ()


def test_an_adapter_answers_as_if_it_had_been_attached_before(client, service, real_engine, shelf):
    answers = {name: text(client, name, temperature=0.7, seed=3) for name in ("law", "poems")}
    assert service.attached == ("law", "poems")
    for name, answer in answers.items():
        real_engine.attach(shelf / name, name=name)
        sampling = Sampling(temperature=0.7, max_new_tokens=12, seed=3)
        *_, step = real_engine.answer([Row(name, (Message("user", TEXTS[0]),))], sampling)
        assert answer == step.rows[0].text
    assert text(client, "base", temperature=0.7, seed=3) not in answers.values()


def test_the_least_recently_used_goes(client, service, real_engine):
    for name in ("law", "poems", "law", "v1.2"):
        text(client, name)
    assert service.attached == ("law", "v1.2")
    # It leaves the model too.
    assert len(real_engine.variants) == 3 + 2
    text(client, "poems")
    assert service.attached == ("v1.2", "poems")


def test_memory_is_bounded_in_bytes(real_engine, shelf, serve_app):
    real_engine.attach(shelf / "law", name="measured")
    most = real_engine.variants[-1].bytes
    real_engine.detach("measured")
    service = AdaptersOnDemand(real_engine, shelf, 16, most, 8, 64)
    client = serve_app(standalone_api(service)).client()
    for name in ("law", "v1.2", "law"):
        text(client, name)
        assert service.attached == (name,)
    tight = AdaptersOnDemand(real_engine, shelf, 16, most - 1, 8, 64)
    with pytest.raises(openai.InternalServerError, match=r"The adapter law cannot be used: 'law' has .* there is"):
        text(serve_app(standalone_api(tight)).client(), "law")


def test_an_adapter_that_is_answering_stays(real_engine, shelf, serve_app, monkeypatch):
    checked: list[str] = []
    original = on_demand.open_adapter

    def opened(source, *arguments, **more):
        checked.append(source.label)
        return original(source, *arguments, **more)

    monkeypatch.setattr(on_demand, "open_adapter", opened)
    service = AdaptersOnDemand(real_engine, shelf, 1, NO_LIMIT, 8, 200)
    client = serve_app(standalone_api(service)).client()
    stream = ask(client, QUESTION, "law", stream=True, max_tokens=200)
    next(stream)
    answered: list[str] = []
    # The second waits for the first, though its adapter is there.
    threads = [
        threading.Thread(target=lambda name=name: answered.append(text(client, name) and name))
        for name in ("poems", "law")
    ]
    threads[0].start()
    until(lambda: checked == ["law", "poems"])
    threads[1].start()
    assert service.attached == ("law",) and not answered
    assert sum(bool(piece.choices[0].delta.content) for piece in stream) > 0
    for thread in threads:
        thread.join()
    assert answered == ["poems", "law"] and service.attached == ("law",)


def test_a_broken_adapter_is_refused_with_a_sentence(client, service):
    with pytest.raises(openai.InternalServerError, match=r"The adapter broken cannot be used: .*safetensors"):
        text(client, "broken")
    # The place is free again.
    assert [text(client, "law") for _ in range(9)]


@pytest.mark.parametrize("name", ["../law", "law/", ".", "", "notes.txt", "visitor-1", "/etc"])
def test_nothing_but_the_folder_s_names_can_be_asked_for(client, name):
    text(client, "law")
    with pytest.raises(openai.NotFoundError, match="There is no model"):
        text(client, name)


def test_a_strength_needs_a_gate(client):
    assert text(client, "poems", extra_body={"slim_strength": 0})
    with pytest.raises(openai.BadRequestError, match="law has no gate, so slim_strength has no effect"):
        text(client, "law", extra_body={"slim_strength": 0})


def test_many_at_once_get_what_they_would_get_alone(client, service):
    names = ["law", "poems"]
    expected = {name: text(client, name) for name in [*names, "v1.2"]}
    answers: list[tuple[str, str]] = []

    def run(name: str) -> None:
        answers.append((name, text(client, name)))

    threads = [threading.Thread(target=run, args=(name,)) for name in names * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8 and all(answer == expected[name] for name, answer in answers)
    assert set(service.attached) == set(names)
