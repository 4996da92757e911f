# SPDX-License-Identifier: Apache-2.0
"""The API as a program uses it."""

import json
import re
import urllib.request
from pathlib import Path
from typing import get_args

import gradio as gr
import pytest
from gradio.utils import get_function_description
from gradio_client import Client
from gradio_client.exceptions import AppError

from slim_core.inference.types import FinishReason, RowStep, Step
from slim_core.webui.backend import Backend
from slim_core.webui.config import Config
from slim_core.webui.launch import launch
from slim_core.webui.layout import build
from slim_core.webui.limits import MAX_STOP_CHARACTERS, MAX_STOPS, ranges
from tests.ui.scripted import ScriptedEngine
from tests.waiting import until


@pytest.fixture(scope="module")
def engine():
    return ScriptedEngine(delay=dict.fromkeys(("base", "lora", "slim"), 0.02), length=30)


@pytest.fixture(scope="module")
def demo(engine):
    from tests.ui.conftest import free_port

    config = Config(port=free_port(), max_new_tokens=512)
    app = build(Backend(engine), config)
    launch(app, config, prevent_thread_lock=True, quiet=True)
    yield app
    app.close(verbose=False)


@pytest.fixture(scope="module")
def client(demo):
    return Client(demo.local_url, verbose=False)


def test_what_is_public(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/compare", "/routing", "/models"}
    compare = endpoints["/compare"]
    required = [p["parameter_name"] for p in compare["parameters"] if not p["parameter_has_default"]]
    assert required == ["prompt"]
    assert client.view_api(return_format="dict")["unnamed_endpoints"] == {}


def test_what_is_said_of_it(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    said = {name: set(re.findall(r"`(\w+)`", endpoint["description"])) for name, endpoint in endpoints.items()}
    last = list(client.submit("Hi", max_new_tokens=4, api_name="/compare"))[-1]
    assert set(last) | set(last["slim"]) | set(last["verdict"]["slim"]) | {"error"} == said["/compare"]
    assert set(client.predict("Hi", max_new_tokens=4, api_name="/routing")) == said["/routing"]
    models = client.predict(api_name="/models")
    assert set(models) | set(models["base"]) | set(models["variants"][0]) == said["/models"]
    assert all(f'"{reason}"' in endpoints["/compare"]["description"] for reason in get_args(FinishReason))


def test_ranges_are_told(demo):
    documented = (Path(__file__).parents[3] / "docs" / "api.md").read_text("utf-8")
    compare = next(fn.fn for fn in demo.fns.values() if fn.api_name == "compare")
    _, parameters, _ = get_function_description(compare)
    # The last one is who asks, which no program says.
    assert all(words for name, words in parameters.items() if name != "request")
    for name, allowed in ranges(512).items():
        known = f"{allowed.low} to {allowed.high}"
        assert parameters[name].startswith(known)
        assert f"| `{name}` | {known}" in documented or name == "max_new_tokens"
    assert f"a list of at most {MAX_STOPS} texts of at most {MAX_STOP_CHARACTERS} characters" in parameters["stop"]


def test_compare_streams(client):
    seen = list(client.submit("Hello there", api_name="/compare"))
    assert len(seen) > 3
    last = seen[-1]
    for name, label in (("base", "Base"), ("lora", "LoRA"), ("slim", "SLIM")):
        assert last[name]["text"].startswith(f"{label} says: turn1 seed0 Hello there")
        assert last[name]["tokens"] == 30 and last[name]["finish_reason"] == "end"
    assert last["drift"]["lora"] == pytest.approx(14)
    assert any(step["base"]["finish_reason"] is None for step in seen)


def test_compare_with_settings(client):
    last = client.predict("Hi", system="Be brief.", seed=5, temperature=0.5, max_new_tokens=4, api_name="/compare")
    assert last["slim"]["text"] == "SLIM says: turn1 seed5" and last["slim"]["finish_reason"] == "length"


def test_cancelling_stops_the_model(client, engine):
    engine.length, closed, runs = 5000, engine.closed, engine.runs
    try:
        job = client.submit("A long story", api_name="/compare")
        # Until something has arrived: a job that is cancelled before says nothing to the server.
        until(lambda: engine.runs > runs and job.outputs())
        job.cancel()
        until(lambda: engine.closed == closed + 1)
    finally:
        engine.length = 30


def test_routing(client):
    routing = client.predict("Hello there", max_new_tokens=10, api_name="/routing")
    assert routing["text"].startswith("SLIM says") and routing["prompt_tokens"] == 2
    assert len(routing["identity"]) == len(routing["modules"]) == len(routing["blocks"]) == 12
    assert len(routing["identity"][0]) == len(routing["tokens"]) == 2 + 9
    assert routing["verdict"]["kind"] == "mixed" and len(routing["gate"]) == 12
    lora = client.predict("Hi", variant="lora", api_name="/routing")
    assert lora["identity"][0][0] == 0 and lora["gate"] is None and lora["verdict"] is None


def test_the_strength_of_the_gate(client):
    shut = client.predict("A foreign one", max_new_tokens=4, api_name="/compare")
    assert shut["verdict"]["slim"] | {"distance": 0} == {
        "kind": "unlike",
        "identity": 1.0,
        "distance": 0,
        "reference": 1.0,
        "closed": 1.0,
        "exact": True,
        "closing": 1.0,
    }
    assert shut["slim"]["text"] == shut["base"]["text"] and set(shut["drift"]) == {"lora", "slim"}
    forced = client.predict("A foreign one", max_new_tokens=4, strength=0, api_name="/compare")
    assert forced["verdict"]["slim"]["closed"] == 0 and forced["slim"]["text"].startswith("SLIM")
    assert set(forced["drift"]) == {"lora", "slim"}
    routed = client.predict("A foreign one", max_new_tokens=4, strength=0, api_name="/routing")
    assert {x for row in routed["gate"] for x in row} == {1.0}
    for name in ("/compare", "/routing"):
        for wrong, said in (
            (-1, "between 0 and 100"),
            (101, "between 0 and 100"),
            ("x", "a number"),
            ([1], "a number"),
        ):
            with pytest.raises(AppError, match=f"Strength must be {said}"):
                client.predict("Hi", strength=wrong, api_name=name)


def test_where_the_gate_begins_to_close(client):
    later = client.predict("A foreign one", max_new_tokens=4, quantile=0.9, api_name="/compare")
    assert later["verdict"]["slim"]["reference"] == pytest.approx(0.9)
    routed = client.predict("A foreign one", max_new_tokens=4, quantile=0.5, api_name="/routing")
    assert routed["verdict"]["reference"] == pytest.approx(0.5)
    for name in ("/compare", "/routing"):
        for wrong, said in (
            (2, "Quantile must be between 0 and 1; it is 2."),
            ("x", "Quantile must be a number."),
            (0.3, "The quantile is 0.3; it must be from 0.5 to 0.99, which the adapter stores."),
        ):
            with pytest.raises(AppError, match=said):
                client.predict("Hi", quantile=wrong, api_name=name)


def test_a_row_that_failed_is_its_sentence(client, engine):
    def failing(rows, *_args, **_kwargs):
        yield Step((RowStep("slim", "done", finish_reason="error", error="The numbers are no longer finite."),))

    engine.answer = failing
    try:
        with pytest.raises(AppError, match="no longer finite"):
            client.predict("Hi", api_name="/routing")
        assert client.predict("Hi", api_name="/compare")["slim"]["error"] == "The numbers are no longer finite."
    finally:
        del engine.answer


def post(client, name, body):
    """What the server says to a request that no client library would send."""
    with urllib.request.urlopen(
        urllib.request.Request(f"{client.src}gradio_api/call/{name}", body, {"Content-Type": "application/json"})
    ) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{client.src}gradio_api/call/{name}/{event}") as stream:
        return stream.read().decode()


def test_half_a_character_from_a_program(client):
    body = b'{"data": ["a\\ud800", "", 0, 1, 0, 0, 1, 8, [], 0, null]}'
    assert "half of a character (U+D800) at position 2" in post(client, "compare", body)


def test_models(client):
    models = client.predict(api_name="/models")
    assert models["base"]["context_length"] == 4096
    assert [v["name"] for v in models["variants"]] == ["base", "lora", "slim"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompt": " "}, "Write a prompt first."),
        ({"prompt": "a\u0007"}, "control character"),
        ({"prompt": "x", "temperature": 9}, "Temperature must be between 0 and 2"),
        ({"prompt": "x", "max_new_tokens": 513}, "Longest answer must be between 1 and 512; it is 513."),
        ({"prompt": "x", "stop": "abc"}, "Stop texts must be a list of texts"),
        ({"prompt": "x", "stop": [0]}, "A stop text must be text."),
        ({"prompt": "x " * 5000}, "has 5,000 tokens; this model reads at most 4,096"),
        ({"prompt": "fail please"}, "The memory is used up"),
        ({"prompt": 5}, "The prompt must be text."),
    ],
)
def test_errors_are_sentences(client, arguments, sentence):
    with pytest.raises(AppError, match=sentence.replace("(", r"\(")):
        client.predict(**arguments, api_name="/compare")


@pytest.mark.parametrize("variant", ["base", "", None, 5, ["slim"], {}, {"slim": 1}])
def test_an_unknown_variant(client, variant):
    with pytest.raises(AppError) as refused:
        client.predict("Hi", variant=variant, api_name="/routing")
    assert str(refused.value).startswith(f"There is no adapter {variant!r}; there are: lora, slim.")


@pytest.mark.parametrize("value", [None, True, {}, ["x"], [["x"]], {"x": 1}])
def test_values_of_another_kind_are_sentences(demo, value):
    # Called without a client, which takes a hundred times as long; that sentences reach one is tested above.
    compare = next(fn.fn for fn in demo.fns.values() if fn.api_name == "compare")
    numbers = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens", "seed")
    for name, said in {"prompt": "text", "system": "text", **dict.fromkeys(numbers, "a number")}.items():
        with pytest.raises(gr.Error, match=rf"must be {said}\."):
            list(compare(**{"prompt": "Hi"} | {name: value}))
    if value != ["x"]:
        with pytest.raises(gr.Error, match=r"must be a list of texts|A stop text must be text"):
            list(compare("Hi", stop=value))


def test_programs_and_visitors_share_the_places_and_no_limit_of_gradio(engine):
    backend = Backend(engine, places=1)
    demo = build(backend, Config())
    limits = {fn.concurrency_limit for fn in demo.fns.values() if fn.concurrency_id in ("model", "api")}
    assert limits == {None}
    assert {fn.concurrency_id for fn in demo.fns.values() if fn.api_name in ("compare", "routing")} == {"api"}
    compare = next(fn for fn in demo.fns.values() if fn.api_name == "compare")
    backend.enter()
    with pytest.raises(gr.Error, match="1 prompts are running or queued"):
        list(compare.fn("Hello"))
    backend.leave()
    assert list(compare.fn("Hello"))[-1]["slim"]["finish_reason"] == "end"
    # The place is free again, also for one who did not listen to the end.
    begun = compare.fn("Hello")
    next(begun)
    begun.close()
    backend.enter()
