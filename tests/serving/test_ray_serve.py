# SPDX-License-Identifier: Apache-2.0
"""`deploy/ray_serve.py` on this machine: two replicas, one of which is killed, and an update, while requests come."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import anyio
import openai
import pytest

from slim_core.inference import EngineError, Message, Row, Sampling
from slim_core.serving.protocol import EngineService
from slim_core.webui.config import Config
from tests.event_loop import in_new_thread
from tests.inference.conftest import QUESTION
from tests.inference.probe import EngineProbe
from tests.serving.test_on_demand import shelf  # noqa: F401
from tests.ui.conftest import free_port
from tests.waiting import PATIENCE, until


ray = pytest.importorskip("ray", reason="Ray is not installed; install it with: pip install 'slim-core[ray]'")
from ray import serve  # noqa: E402


pytestmark = pytest.mark.nightly
ROOT = Path(__file__).resolve().parents[2]
MESSAGES = [{"role": "user", "content": QUESTION[0].content}]
# Long enough for a stream to be cut.
LONG = {"max_tokens": 200, "n": 8, "temperature": 1.0}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Ray with small memory and without a dashboard; its proxy on the loopback interface."""
    folder = tempfile.mkdtemp(prefix="ray")  # the paths of its sockets must be short
    # Workers yield to everything else by default, which on a busy machine takes minutes.
    settings = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    http_port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        ray.init(
            num_cpus=2,
            object_store_memory=80 * 2**20,
            include_dashboard=False,
            logging_level="warning",
            _temp_dir=folder,
        )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": http_port})
            yield http_port
            serve.shutdown()
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Fleet:
    """The application, and its client."""

    port: int
    arguments: dict[str, object]
    client: openai.OpenAI = field(init=False)

    def __post_init__(self) -> None:
        url = f"http://127.0.0.1:{self.port}/v1"
        self.client = openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=120 * PATIENCE)

    def deploy(self, **changes: object) -> None:
        from deploy.ray_serve import app

        serve.run(app(self.arguments | {"cpus": 0.4} | changes), name="slim", route_prefix="/")

    def running(self) -> int:
        return serve.status().applications["slim"].deployments["Replica"].replica_states.get("RUNNING", 0)

    def ask(self, model: str = "base", **options):
        options = {"temperature": 0, "max_tokens": 12} | options
        return self.client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES, **options)

    def text(self, model: str) -> str:
        return self.ask(model).parse().choices[0].message.content

    def names(self, replica: str = "#Replica#") -> list[str]:
        """Names of Ray's actors that contain a text."""
        return [a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if replica in a["name"]]

    def kill(self, replica: str) -> None:
        (name,) = self.names(replica)
        ray.kill(ray.get_actor(name, namespace="serve"))


@pytest.fixture(scope="module")
def fleet(port, folders, shelf) -> Fleet:  # noqa: F811
    names = {"base": folders.base, "lora": folders.lora, "slim": folders.slim, "adapters": shelf}
    deployed = Fleet(port, {"max_adapters": 1, "max_new_tokens": 200, "concurrency": 8, "device": "cpu"} | names)
    deployed.deploy(replicas=2)
    return deployed


class Load(NamedTuple):
    """Requests of eight clients, until it is stopped.

    Attributes:
        outcomes: what they got so far: "right", or what was wrong.
        stop: ends them.
    """

    outcomes: list[str]
    stop: Callable[[], None]

    def more(self) -> None:
        """Wait for a few dozen more answers."""
        enough = len(self.outcomes) + 40
        until(lambda: len(self.outcomes) >= enough, 240)


@contextmanager
def asking(fleet: Fleet) -> Iterator[Load]:
    """Requests that run meanwhile."""
    models = ("base", "lora", "slim")
    expected = {model: fleet.text(model) for model in models}
    outcomes: list[str] = []
    end = threading.Event()

    def run(model: str) -> None:
        while not end.is_set():
            try:
                outcomes.append("right" if fleet.text(model) == expected[model] else "another answer")
            except openai.APIError as error:
                outcomes.append(str(error))

    threads = [threading.Thread(target=run, args=(models[i % 3],)) for i in range(8)]
    for thread in threads:
        thread.start()

    def stop() -> None:
        end.set()
        for thread in threads:
            thread.join()

    try:
        until(lambda: len(outcomes) > 8, 120)
        yield Load(outcomes, stop)
    finally:
        stop()


@pytest.fixture
def load(fleet) -> Iterator[Load]:
    """Requests that run during the test."""
    with asking(fleet) as running:
        yield running


def test_every_replica_gives_the_engine_s_answers(fleet, real_engine, shelf):  # noqa: F811
    names = ["base", "lora", "slim", "broken", "law", "poems", "v1.2"]
    assert [model.id for model in fleet.client.models.list()] == names
    for name in ("law", "poems"):
        real_engine.attach(shelf / name, name=name)
    # More names than each has room for.
    for name in ("base", "law", "slim", "poems", "law"):
        *_, step = real_engine.answer(
            [Row(name, (Message("user", QUESTION[0].content),))], Sampling(max_new_tokens=12)
        )
        assert fleet.text(name) == step.rows[0].text
    with pytest.raises(openai.InternalServerError, match="The adapter broken cannot be used"):
        fleet.text("broken")
    with pytest.raises(openai.NotFoundError, match=r"There is no model '\.\./law' here"):
        fleet.text("../law")
    until(lambda: len({fleet.ask().headers["x-slim-replica"] for _ in range(8)}) == 2)


def test_a_killed_replica_loses_nothing_but_the_stream_that_had_begun(fleet, load):
    until(lambda: fleet.running() == 2, 120)
    response = fleet.ask(stream=True, **LONG)
    stream = response.parse()
    assert all(next(stream).choices for _ in range(3))
    fleet.kill(response.headers["x-slim-replica"])
    with pytest.raises(openai.APIError, match="The replica that was writing this answer has ended"):
        list(stream)
    load.more()
    # Another one takes its place.
    until(lambda: not fleet.names(response.headers["x-slim-replica"]) and fleet.running() == 2, 240)
    load.more()
    load.stop()
    assert set(load.outcomes) == {"right"}
    print(f"{len(load.outcomes)} answers")


def test_an_update_loses_nothing(fleet, load):
    before = set(fleet.names())
    fleet.deploy(replicas=2, max_new_tokens=100)
    until(lambda: len(fleet.names()) == 2 and not before & set(fleet.names()), 240)
    load.more()
    load.stop()
    assert set(load.outcomes) == {"right"}
    print(f"{len(load.outcomes)} answers")
    with pytest.raises(openai.BadRequestError, match="An answer here has at most 100 tokens; 101 were asked for"):
        fleet.ask(max_tokens=101)


def test_a_queue_brings_another_replica(fleet):
    serve.delete("slim")
    fleet.deploy(replicas=1, max_replicas=2, concurrency=2)
    assert fleet.running() == 1
    with asking(fleet) as load:
        until(lambda: fleet.running() == 2, 400)
    assert set(load.outcomes) == {"right"}
    print(f"{len(load.outcomes)} answers")


def test_a_replica_whose_model_fails_is_not_healthy(real_engine, monkeypatch):
    """Ray replaces a replica whose `check_health` raises."""
    from deploy import ray_serve

    def fail(*args, **options):
        raise RuntimeError("the device is gone")

    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="one"))
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(ray_serve, "api_service", lambda config: EngineService(real_engine, 4, 100))
    replica = ray_serve.Replica(Config.read({}, page=False))
    in_new_thread(anyio.run, replica.check_health)
    monkeypatch.setattr(EngineProbe(real_engine).base, "forward", fail)
    with pytest.raises(EngineError, match="The model failed while it read the prompt: the device is gone"):
        in_new_thread(anyio.run, replica.check_health)
