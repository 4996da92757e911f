# SPDX-License-Identifier: Apache-2.0
"""A work with a GPU for one call on ZeroGPU, which changes nothing elsewhere."""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import gradio as gr
import pytest
import torch

from slim_core.inference import Message, Row, Sampling, Stops, load_engine
from slim_core.inference.types import Drift, Reading
from slim_core.webui.backend import Backend, Job
from slim_core.webui.state.session import Session, Turn
from slim_core.webui.wire import evaluation as wire
from slim_core.webui.wire.stream import start
from tests.inference.conftest import folders  # noqa: F401 - a fixture
from tests.webui.conftest import ask
from tests.webui.wire.test_evaluation import done, requests, two


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
ROOT = Path(__file__).resolve().parents[2]
SPACES = Path(__file__).parent / "zero_gpu"
# What ZeroGPU and a visitor see of the app.
SCRIPT = """
import json, app, spaces
from gradio_client import Client
from slim_core.webui.launch import launch
_, url, _ = launch(app.demo, app.config, prevent_thread_lock=True, quiet=True)
client = Client(url, verbose=False)
compare = client.predict("What is the sea?", max_new_tokens=6, api_name="/compare")
one = client.predict("What is the sea?", max_new_tokens=6, api_name="/routing")
print("FOUND", json.dumps([spaces.TORCH_WAS_THERE, spaces.LOANS, compare, one]))
"""


@pytest.fixture
def spaces():
    spec = spec_from_file_location("spaces_like", SPACES / "spaces" / "__init__.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_app(folders, **environment):  # noqa: F811
    names = {f"SLIM_{name.upper()}": str(getattr(folders, name)) for name in ("base", "lora", "slim")}
    environment = os.environ | names | {"SLIM_DEVICE": "cpu", "OMP_NUM_THREADS": "1"} | environment
    environment["SLIM_PORT"] = str(_free_port())
    environment["PYTHONPATH"] = str(SPACES)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr
    return json.loads(lines[0].removeprefix("FOUND "))


def _free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("zero_gpu", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_the_app_borrows_once_a_prompt_and_only_on_zero_gpu(folders, zero_gpu):  # noqa: F811
    torch_was_there, loans, compare, routing = run_app(folders, SPACES_ZERO_GPU="true" if zero_gpu else "")
    assert not torch_was_there
    assert len(loans) == (2 if zero_gpu else 0)
    engine = load_engine(folders.base, lora=folders.lora, slim=folders.slim, device="cpu")
    question = (Message("user", "What is the sea?"),)
    names = ("base", "lora", "slim")
    *_, step = engine.answer([Row(n, question, n == "slim") for n in names], Sampling(max_new_tokens=6))
    assert [compare[name]["text"] for name in names] == [row.text for row in step.rows]
    drift = engine.drift(question, step.rows[0].token_ids, ["lora", "slim"])
    for variant in drift.variants:
        assert compare["drift"][variant.variant] == pytest.approx(float(variant.log_ratio.sum()), abs=1e-3)
    share = step.routing[2].weights[:, :, step.routing[2].num_experts :].sum(-1)
    torch.testing.assert_close(torch.tensor(routing["identity"]), share, atol=1e-3, rtol=0)


def test_what_comes_back_is_what_was_sent(engine, spaces):
    rows = tuple(Row(name, (Message("user", "Hello there"),), True) for name in ("base", "lora", "slim"))
    job = Job(rows, Sampling(max_new_tokens=5), reading=Reading(("lora", "slim"), rows[0].messages))
    *_, lent_step, lent_drift = Backend(engine, spaces.GPU).run(job, Stops(3))
    *_, step, drift = Backend(engine).run(job, Stops(3))
    assert [row.text for row in lent_step.rows] == [row.text for row in step.rows]
    assert isinstance(lent_drift, Drift) and lent_drift.tokens == drift.tokens
    for name in ("weights", "distance", "cluster", "gate", "reference"):
        assert torch.equal(getattr(lent_step.routing[2], name), getattr(step.routing[2], name))
    assert torch.equal(lent_drift.variants[0].log_ratio, drift.variants[0].log_ratio)
    assert len(spaces.LOANS) == 1


def test_an_evaluation_borrows_for_each_few_questions(engine, spaces):
    evaluation = done(Backend(engine, spaces.GPU), two(6))
    assert wire.tab_view(evaluation) == wire.tab_view(done(Backend(engine), two(6)))
    assert len(spaces.LOANS) == 4
    failing = wire.tab_view(done(Backend(engine, spaces.GPU), [requests("bad", "general", ["fail please"])]))
    assert failing["groups"] == [] and failing["note"] == (
        "Bad in words: no question could be solved: The memory is used up: shorten the conversation."
    )


def test_a_sentence_survives_the_way_back(engine, spaces):
    session = Session()
    turn = ask(session, Backend(engine, spaces.GPU), "fail please")
    assert {answer.step.error for answer in turn.answers.values()} == {
        "The memory is used up: shorten the conversation."
    }


def test_stop_flags_reach_the_other_process(engine, spaces):
    engine.delay, engine.length = dict.fromkeys(("base", "lora", "slim"), 0.05), 2000
    session, backend = Session(), Backend(engine, spaces.GPU)
    turn = Turn(session.next_id(), "A long story", "", {})
    run = start(backend, session, turn, ["base", "lora", "slim"], Sampling(max_new_tokens=2000), batched=True)
    run.stop("lora")
    run.stop()
    assert run.ended.wait(20)
    assert {answer.step.finish_reason for answer in turn.answers.values()} == {"stopped"}


def test_why_no_gpu_is_lent_is_said_in_the_column(engine):
    def gpu(duration):
        def lend(task):
            def call(*arguments):
                raise gr.Error('You have exceeded your quota. <a href="x">Try again</a> in 2:00.')
                yield

            return call

        return lend

    session = Session()
    turn = ask(session, Backend(engine, gpu), "Hello")
    assert turn.answers["slim"].step.error == "You have exceeded your quota. Try again in 2:00."
