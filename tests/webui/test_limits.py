# SPDX-License-Identifier: Apache-2.0
"""What visitors may send, and what they may configure."""

import math

import pytest

from slim_core.inference import GateSetting
from slim_core.webui.config import Config, ConfigError
from slim_core.webui.limits import (
    LimitError,
    check_gate,
    check_prompt,
    check_room,
    check_sampling,
    check_text,
    split_stops,
)
from slim_core.webui.tabs.settings import check, defaults, link, restore


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "Write a prompt first."),
        (" \n\t ", "Write a prompt first."),
        (None, "The prompt must be text."),
        (["a"], "The prompt must be text."),
        ("a\x00b", "control character (U+0000) at position 2"),
        ("\x1b[31m", "control character (U+001B) at position 1"),
        ("a\x85", "control character (U+0085) at position 2"),
        ("ab\ud800", "half of a character (U+D800) at position 3"),
        ("x" * 1_000_000, "has 1,000,000 characters; at most 100,000 can be sent"),
    ],
)
def test_prompts_that_are_refused(text, sentence):
    with pytest.raises(LimitError) as error:
        check_prompt(text)
    assert sentence in str(error.value)


@pytest.mark.parametrize("text", ["Hello", "two\nlines\twith tab\r\n", "日本語 👩‍👩‍👧 עברית", "\u202eright to left"])
def test_prompts_that_are_fine(text):
    assert check_prompt(f" {text} ") == text.strip()


def test_room():
    check_room(99, 100)
    with pytest.raises(LimitError, match=r"has 1,500 tokens; this model reads at most 1,024"):
        check_room(1500, 1024)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.5),
        ("temperature", math.nan),
        ("temperature", "0.5"),
        ("temperature", True),
        ("top_p", 0),
        ("top_k", 1.5),
        ("min_p", math.inf),
        ("max_new_tokens", 0),
        ("max_new_tokens", 10**9),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", None),
    ],
)
def test_numbers_out_of_range(name, value):
    with pytest.raises(LimitError):
        check_sampling(**{name: value})


def test_stop_texts():
    assert check_sampling(split_stops("\n\nEND\nEND\nStop")).stop == ("END", "Stop")
    assert check_sampling(["a", "", "b"]).stop == ("a", "b")
    for stops in (list(map(str, range(9))), ["x" * 101], [1], [None], [0], 5, "abc", "", None, {"a": 1}):
        with pytest.raises(LimitError):
            check_sampling(stops)


def test_settings_from_the_page():
    chosen = check(defaults(1024) | {"system": " Be brief. ", "one_at_a_time": True, "seed": 4.0}, 1024)
    assert chosen.system == "Be brief." and chosen.one_at_a_time and chosen.sampling.seed == 4
    with pytest.raises(LimitError, match=r"Longest answer must be between 1 and 1,024; it is 2,000\."):
        check(defaults(1024) | {"max_new_tokens": 2000}, 1024)


@pytest.mark.parametrize("saved", [None, [], "text", 5, {"unknown": 1}, {"seed": "x"}, {"top_p": {}}, {"stop": 3}])
def test_nonsense_in_the_browser_gives_the_defaults(saved):
    assert restore(saved, 1024) == defaults(1024)


@pytest.mark.parametrize("longest", [1, 100, 4096])
def test_the_defaults_are_possible_whatever_the_server_allows(longest):
    assert check(defaults(longest), longest).sampling.max_new_tokens == min(256, longest)
    assert restore({"temperature": 0.7}, longest)["temperature"] == 0.7


@pytest.mark.parametrize("seed", [10**400, -(10**5000), 2**60], ids=["long", "longer", "large"])
def test_numbers_of_any_length_are_a_sentence(seed):
    with pytest.raises(LimitError, match="Seed must be between 0 and"):
        check_sampling(seed=seed)


def test_a_link_and_back():
    values = defaults(1024) | {
        "temperature": 0.7,
        "seed": 12,
        "system": "Ä & b",
        "one_at_a_time": True,
        "stop": "a\nb",
    }
    query = link("What is 1+1?", values, GateSetting(0.5, 0.9), 1024)
    from urllib.parse import parse_qsl

    parameters = dict(parse_qsl(query))
    assert [parameters.pop(name) for name in ("prompt", "strength", "quantile")] == ["What is 1+1?", "0.5", "0.9"]
    assert restore(parameters, 1024) == values
    with pytest.raises(LimitError, match="The link would have"):
        link("x" * 7000, values, GateSetting(), 1024)


def test_what_is_asked_of_a_gate():
    stored = (0.5, 0.9, 0.999)
    assert check_gate(None, None, stored) == GateSetting() and check_gate(0, 0.75, stored) == GateSetting(0.0, 0.75)
    # Of an adapter that is not loaded here.
    assert check_gate(4, 0.3) == GateSetting(4.0, 0.3)


@pytest.mark.parametrize(
    ("strength", "quantile", "sentence"),
    [
        (-1, None, "Strength must be between 0 and 100; it is -1."),
        ("4", None, "Strength must be a number."),
        (None, True, "Quantile must be a number."),
        (None, 1.5, "Quantile must be between 0 and 1; it is 1.5."),
        (None, 1, "`quantile` must be above 0 and below 1, not 1.0."),
        (None, 0.3, "The quantile is 0.3; it must be from 0.5 to 0.999, which the adapter stores."),
    ],
)
def test_what_no_gate_can_do_is_a_sentence(strength, quantile, sentence):
    with pytest.raises(LimitError) as refused:
        check_gate(strength, quantile, (0.5, 0.9, 0.999))
    assert str(refused.value) == sentence


def test_text_names_what_it_is():
    with pytest.raises(LimitError, match=r"The system prompt has a control character"):
        check_text("\x01", "The system prompt")


def test_config_from_environment_and_flags():
    config = Config.read({"SLIM_BASE": "a", "SLIM_PORT": "80", "SLIM_LOAD_4BIT": "yes", "SLIM_LORA": " b "}, port=81)
    assert (config.base, config.port, config.load_4bit, config.lora) == ("a", 81, True, "b")
    assert Config.read({"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": "9"}).port == 9
    assert Config.read({"SLIM_AUTH_USER": "u", "SLIM_AUTH_PASSWORD": "p"}).auth == ("u", "p")
    assert Config.read({}).auth is None


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"SLIM_PORT": "high"}, "SLIM_PORT is 'high'; it must be a whole number."),
        ({"SLIM_LOAD_4BIT": "maybe"}, "SLIM_LOAD_4BIT is 'maybe'; say 1 or 0."),
        ({"SLIM_AUTH_USER": "u"}, "set both or none"),
        ({"SLIM_QUEUE_SIZE": "0"}, "SLIM_QUEUE_SIZE must be at least 1."),
        ({"SLIM_CACHE_MEMORY": "-1"}, "SLIM_CACHE_MEMORY must be at least 0."),
        ({"SLIM_PORT": "99999"}, "SLIM_PORT is 99,999; a port is at most 65,535."),
        ({"SLIM_SLIM": "x"}, "An adapter needs its base model: set SLIM_BASE."),
        ({"SLIM_REVISION": "x"}, "SLIM_REVISION is the revision of a base model on the Hub: set SLIM_BASE too."),
    ],
)
def test_config_that_makes_no_sense(environment, sentence):
    with pytest.raises(ConfigError) as error:
        Config.read(environment)
    assert sentence in str(error.value)


def test_mcp_without_its_package_is_a_sentence(monkeypatch):
    monkeypatch.setattr("slim_core.webui.config.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "gradio\[mcp\]"'):
        Config.read({"GRADIO_MCP_SERVER": "True"})
    assert Config.read({"GRADIO_MCP_SERVER": "False"}) == Config.read({})
