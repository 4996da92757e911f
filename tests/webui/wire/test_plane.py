# SPDX-License-Identifier: Apache-2.0
"""The plane of learning and forgetting, from stored results that may be anything."""

import json

import pytest

from slim_core.inference import AS_TRAINED, GateSetting
from slim_core.webui.state.session import Session
from slim_core.webui.wire import plane
from slim_core.webui.wire.forgetting import read_results, view
from tests.ui.scripted import PLANE, RATES, RESULTS


POINTS = plane.points_of(PLANE)


def test_what_is_drawn():
    drawn = plane.view(POINTS, plane.rates_of(RATES), (), AS_TRAINED)
    assert drawn["base"]["general"] == pytest.approx((0.85, 0.8, 0.9))
    assert [(p["name"], p["what"]) for p in drawn["shipped"]] == [("LoRA", ""), ("SLIM", "strength 4")]
    assert [p["strength"] for p in drawn["strengths"]] == [0, 1, 4, 8]
    assert drawn["strengths"][0]["what"] == "gate open"
    assert [p["what"] for p in drawn["scales"]] == ["× 0.5", ""]
    assert drawn["here"] == {"general": 0.8, "downstream": 0.88, "text": "now: strength 4"}
    rates = {(p["method"], p["what"]): p for p in drawn["rates"]}
    assert rates["lora", "rate 0.001, 2 seeds"]["general"] == pytest.approx((0.4, 0.3, 0.5))
    assert rates["slim", "rate 0.003"]["downstream"] == (0.9, 0.9, 0.9)
    json.dumps(drawn)


@pytest.mark.parametrize(
    ("strength", "general", "text"),
    [
        (0.0, 0.4, "now: strength 0"),
        (2.5, 0.7, "now: strength 2.5, between two that were measured"),
        (16.0, 0.84, "now: strength 16, beyond what was measured"),
    ],
)
def test_where_a_strength_lies(strength, general, text):
    here = plane.view(POINTS, (), (), GateSetting(strength))["here"]
    assert here["general"] == pytest.approx(general) and here["text"] == text


def test_another_quantile_lies_nowhere():
    assert plane.view(POINTS, (), (), AS_TRAINED)["elsewhere"] == ""
    drawn = plane.view(POINTS, (), (), GateSetting(quantile=0.9))
    assert drawn["here"] is None and "at a quantile at which nothing was measured" in drawn["elsewhere"]


def test_an_open_gate_lies_where_it_was_measured_whatever_the_quantile():
    drawn = plane.view(POINTS, (), (), GateSetting(0.0, 0.9))
    assert drawn["elsewhere"] == "" and drawn["here"]["general"] == 0.4


def test_who_does_not_answer_is_not_there():
    drawn = plane.view(POINTS, plane.rates_of(RATES), ["slim"], AS_TRAINED)
    assert drawn["strengths"] == [] and drawn["here"] is None and {p["method"] for p in drawn["rates"]} == {"lora"}
    assert {p["method"] for p in drawn["shipped"]} == {"lora"}
    drawn = plane.view(POINTS, plane.rates_of(RATES), ["lora"], AS_TRAINED)
    assert drawn["scales"] == [] and {p["method"] for p in drawn["rates"]} == {"slim"}


def test_results_without_a_plane_are_shown_as_before():
    assert plane.points_of({}) == [] and plane.view([], [], (), AS_TRAINED) is None
    assert view({k: v for k, v in RESULTS.items() if k != "plane"}, Session())["plane"] is None


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {},
        {"variant": "evil", "general": [0, 0, 0], "downstream": [0, 0, 0]},
        {"variant": "base", "general": [0.5], "downstream": [0, 0, 0]},
        {"variant": "base", "general": [2, 0, 0], "downstream": [0, 0, 0]},
        {"variant": "slim", "strength": "x", "general": [0, 0, 0], "downstream": [0, 0, 0]},
        {"variant": "base", "general": [float("nan")] * 3, "downstream": [0, 0, 0]},
    ],
)
def test_results_that_make_no_sense_are_none(tmp_path, entry):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RESULTS | {"plane": [entry]}))
    assert read_results(path) is None


def test_results_and_the_rates_beside_them(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RESULTS | {"rates": "of somebody else"}))
    assert read_results(path) == RESULTS
    (tmp_path / "build.json").write_text("[1")
    assert read_results(path) == RESULTS
    (tmp_path / "build.json").write_text(json.dumps({"sweep": RATES}))
    assert len(read_results(path)["rates"]) == 2


def test_the_open_gate_is_a_bar_of_its_own_where_it_was_measured():
    tasks = {
        name: task | {"slim_open": {"score": 0.4, "low": 0.3, "high": 0.5}} for name, task in RESULTS["tasks"].items()
    }
    assert view(RESULTS | {"tasks": tasks}, Session())["labels"]["slim_open"] == "SLIM, open"
    assert "slim_open" not in view(RESULTS, Session())["labels"]
