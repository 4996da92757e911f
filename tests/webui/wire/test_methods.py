# SPDX-License-Identifier: Apache-2.0
"""The stored comparison of all methods, from a file that may be anything."""

import json

import pytest

from slim_core.webui.state.session import Session
from slim_core.webui.wire.forgetting import view
from slim_core.webui.wire.methods import read_methods
from tests.ui.scripted import RESULTS


def entry(name, title, rate, general, downstream, chosen=True, seeds=(0.5,)):
    kinds = {
        kind: {"score": score, "low": score - 0.05, "high": score + 0.05, "seeds": list(seeds)}
        for kind, score in (("general", general), ("downstream", downstream))
    }
    return {"name": name, "title": title, "part": "mixed", "rate": rate, "chosen": chosen} | kinds


ENTRIES = [
    entry("base", "base", None, 0.9, 0.5),
    entry("lora", "LoRA", 1e-3, 0.8, 0.85, chosen=False, seeds=(0.7, 0.9)),
    entry("lora", "LoRA", 3e-3, 0.4, 0.9),
    entry("disel", "DISeL", 3e-3, 0.6, 0.9),
    entry("slim", "SLIM", 3e-3, 0.9, 0.9),
]


def stored(tmp_path, entries):
    path = tmp_path / "table2-demo.json"
    path.write_text(json.dumps({"plane": entries}), encoding="utf-8")
    return path


def test_the_chosen_rates_of_lora_and_slim_are_named(tmp_path):
    methods = read_methods(stored(tmp_path, ENTRIES))
    assert methods["base"]["general"] == pytest.approx((0.9, 0.85, 0.95)) and methods["base"]["name"] == "Base"
    assert [(p["name"], p["what"]) for p in methods["shipped"]] == [
        ("LoRA", "rate 0.003, 1 seed"),
        ("SLIM", "rate 0.003, 1 seed"),
    ]
    assert [(p["name"], p["method"], p["what"]) for p in methods["rates"]] == [
        ("LoRA", "lora", "rate 0.001, 2 seeds"),
        ("DISeL", "other", "rate 0.003, 1 seed"),
    ]
    assert methods["note"].endswith("at the rate with the lowest validation loss.")
    one = read_methods(stored(tmp_path, [e for e in ENTRIES if e["rate"] != 1e-3]))
    assert one["note"].endswith(
        "LoRA and SLIM are named. So far all have been trained at one rate; others may do better at another."
    )
    assert view(RESULTS | {"methods": methods}, Session())["methods"] == methods
    assert view(RESULTS, Session())["methods"] is None


@pytest.mark.parametrize(
    "entries",
    [
        None,
        [],
        ENTRIES[1:],
        [ENTRIES[0], {}],
        [entry("base", "base", None, 1.2, 0.5)],
        [entry("lora", "LoRA", "x", 0.1, 0.1)],
    ],
)
def test_a_file_in_another_form_shows_nothing(tmp_path, entries):
    assert read_methods(stored(tmp_path, entries)) is None
    assert read_methods(tmp_path / "none.json") is None
