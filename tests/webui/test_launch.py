# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core serve`, up to where the server would start."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from slim_core.base.choice import DEMO_NAME
from slim_core.cli import app
from slim_core.inference import EngineError
from slim_core.webui import launch
from slim_core.webui.backend import Backend
from slim_core.webui.config import Config
from slim_core.webui.tabs.models import facts_of
from slim_core.webui.wire.forgetting import read_results
from slim_core.webui.words import base_name
from tests.ui.scripted import RESULTS


@pytest.fixture
def served(monkeypatch):
    configs = []
    monkeypatch.setattr(launch, "open_app", lambda config: configs.append(config))
    monkeypatch.setattr(launch, "launch", lambda demo, config: None)
    return configs


def run(*arguments, **environment):
    return CliRunner().invoke(app, ["serve", *arguments], env=environment)


def test_flags_go_before_the_environment(served):
    result = run("--port", "99", "--base", "b", SLIM_PORT="98", SLIM_SLIM="s", SLIM_LOAD_4BIT="1")
    assert result.exit_code == 0, result.output
    assert (served[0].port, served[0].base, served[0].slim, served[0].load_4bit) == (99, "b", "s", True)
    run("--no-load-4bit", "--base", "b", SLIM_LOAD_4BIT="1")
    assert served[1].load_4bit is False


def test_nonsense_is_one_sentence(served):
    result = run(SLIM_PORT="high")
    assert result.exit_code == 1 and "SLIM_PORT is 'high'" in result.stderr and "Traceback" not in result.stderr


def test_a_model_that_is_not_there_is_one_sentence(tmp_path):
    result = run("--base", str(tmp_path / "nothing"))
    assert result.exit_code == 1 and result.stderr.startswith("Error: ")


def test_no_demo(tmp_path):
    with pytest.raises(EngineError, match="There is no demo model"):
        launch.open_engine(Config(), tmp_path)


def test_results_that_make_no_sense_are_none(tmp_path):
    path = tmp_path / "results.json"
    assert read_results(path) is None
    for text in ("", "[]", "{}", '{"tasks": {"a": {"kind": "evil", "n": 1}}}', '{"tasks": []}'):
        path.write_text(text)
        assert read_results(path) is None


def test_results_stand_beside_the_adapters(tmp_path):
    for name, text in (("lora", RESULTS), ("slim", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(text))
    own = Config(base="b", lora=str(tmp_path / "lora"), slim=str(tmp_path / "slim"))
    # SLIM's make no sense, so they are as good as none.
    assert launch.stored_results(own, tmp_path) == RESULTS
    assert launch.stored_results(Config(base="b", slim="org/on-the-hub"), tmp_path) is None
    (tmp_path / "results.json").write_text(json.dumps(RESULTS | {"general": {"base": 1}}))
    assert launch.stored_results(Config(), tmp_path) is None


def test_where_a_base_lies_on_the_server_is_not_told(engine, tmp_path):
    def named(name):
        return base_name(replace(engine.info, name=name))

    (tmp_path / "my-base").mkdir()
    assert named(str(tmp_path / "my-base")) == "my-base"
    assert named("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B" and named(DEMO_NAME) == "SLIM demo"


def test_a_lent_gpu_is_not_asked_for_its_memory(engine):
    zero_gpu = Backend(engine, lambda duration: lambda function: function)
    assert "Free" not in str(facts_of(zero_gpu)) and "Free" in str(facts_of(Backend(engine)))
