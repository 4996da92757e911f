# SPDX-License-Identifier: Apache-2.0
"""Results as CSV and JSON: safe in a spreadsheet, whole in JSON."""

import csv
import io
import json
import math

import pytest

from slim_core.base.messages import Message
from slim_core.inference import GateSetting, Sampling, Variant, Verdict
from slim_core.many import PromptAnswer, PromptResult, Respondent, mean_drift, to_csv, to_json
from slim_core.many.tables import plain


ASKERS = (
    Respondent("base", Variant("base", "base", "Base", 10, 40)),
    Respondent("slim", Variant("v-7", "slim", "=mine", 2, 8, strength=4.0), GateSetting(0.0, 0.9)),
)
ANSWERS = (
    PromptAnswer("base", "Base", "base", "-3", 2, "end"),
    PromptAnswer(
        "slim",
        "=mine",
        "slim",
        'a "b",\nc',
        3,
        "length",
        identity=0.25,
        gate=GateSetting(0.0, 0.9),
        verdict=Verdict(0.25, -1.5, 2.0, 0.5, False, 0.25),
        log_ratio=-0.12345678,
        mean_kl=0.5,
    ),
)
RESULTS = (
    PromptResult(1, "a.csv, line 2", (Message("system", "@all"), Message("user", "=1+1")), ANSWERS),
    PromptResult(2, "a.csv, line 3", (Message("user", "Hi"),), error="The memory is used up."),
)


def lines_of(text):
    assert text.startswith("\ufeff")
    return list(csv.DictReader(io.StringIO(text[1:], newline="")))


def test_csv_has_a_line_a_prompt():
    first, second = lines_of(to_csv(RESULTS, ASKERS))
    assert list(first)[:5] == ["number", "place", "system", "prompt", "error"]
    assert list(first)[5:11] == [
        *(f"base_{n}" for n in ("label", "answer", "tokens", "finish_reason", "error")),
        "slim_label",
    ]
    assert first["prompt"] == "'=1+1" and first["system"] == "'@all"
    assert first["base_answer"] == "'-3" and first["base_tokens"] == "2"
    assert first["slim_label"] == "'=mine" and first["slim_answer"] == 'a "b",\nc'
    assert (first["slim_identity"], first["slim_verdict"], first["slim_exact"]) == ("0.25", "like", "no")
    # A number is no formula.
    assert (first["slim_log_ratio"], first["slim_distance"]) == ("-0.123457", "-1.5")
    assert (first["slim_strength"], first["slim_quantile"], first["slim_mean_kl"]) == ("0.0", "0.9", "0.5")
    assert second["error"] == "The memory is used up." and second["prompt"] == "Hi"
    assert {second[name] for name in second if name.startswith(("base_", "slim_"))} == {""}


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\tx", "'\tx"),
        ("\rx", "'\rx"),
        ("\nx", "'\nx"),
        ("  =1", "'  =1"),
        ("\u200b\x00=1", "'\u200b\x00=1"),
        ("\ufeff@a", "'\ufeff@a"),
        ("＝1", "'＝1"),
        ("－1", "'－1"),
        ("1+1", "1+1"),
        ("a = b", "a = b"),
        ("'=1", "'=1"),
        ("", ""),
        ("  two", "  two"),
    ],
)
def test_no_text_is_a_formula(text, cell):
    assert plain(text) == cell


def test_every_text_of_a_line_is_guarded():
    bad = "=cmd|' /C calc'!A0"
    answers = tuple(PromptAnswer(a.column, bad, a.variant.kind, bad, 1, "end", error=bad) for a in ASKERS)
    (line,) = lines_of(
        to_csv([PromptResult(1, bad, (Message("system", bad), Message("user", bad)), answers, bad)], ASKERS)
    )
    assert [cell for cell in line.values() if cell.startswith("=")] == []
    assert list(line.values()).count(f"'{bad}") == 4 + 3 * len(ASKERS)


def test_a_conversation_in_one_cell():
    talk = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye"))
    (line,) = lines_of(to_csv([PromptResult(1, "x", talk, ANSWERS)], ASKERS))
    assert line["prompt"] == "user: Hi\n\nassistant: Hello\n\nuser: Bye"


def test_json_has_everything_as_it_is():
    document = json.loads(to_json(RESULTS, 5, "demo", ASKERS, Sampling(seed=3)))
    assert (document["format"], document["version"], document["base"], document["prompts"]) == (
        "slim-prompts",
        1,
        "demo",
        5,
    )
    assert document["sampling"]["seed"] == 3
    assert [(v["name"], v["label"], v["gate_strength"], v["gate_quantile"]) for v in document["variants"]] == [
        ("base", "Base", None, None),
        ("slim", "=mine", 0.0, 0.9),
    ]
    first, second = document["results"]
    assert first["messages"] == [{"role": "system", "content": "@all"}, {"role": "user", "content": "=1+1"}]
    slim = first["answers"]["slim"]
    assert slim["text"] == 'a "b",\nc' and slim["log_ratio"] == -0.12345678 and slim["identity"] == 0.25
    assert (slim["strength"], slim["quantile"]) == (0.0, 0.9) and "gate" not in slim
    assert slim["verdict"] == {
        "kind": "like", "identity": 0.25, "distance": -1.5, "reference": 2.0, "closed": 0.5, "exact": False,
        "closing": 0.25,
    }  # fmt: skip
    assert first["answers"]["base"]["verdict"] is None
    assert second["answers"] == {} and second["error"] == "The memory is used up."


def test_what_is_not_finite_is_left_out():
    answer = PromptAnswer("base", "Base", "base", "x", 1, "end", log_ratio=math.inf, mean_kl=math.nan)
    slim = PromptAnswer("slim", "S", "slim", "x", 1, "end", log_ratio=math.inf, mean_kl=math.nan)
    results = [PromptResult(1, "x", (Message("user", "Hi"),), (answer, slim))]
    document = json.loads(to_json(results, 1, "demo", ASKERS, Sampling()), parse_constant=pytest.fail)
    assert document["results"][0]["answers"]["slim"]["log_ratio"] is None
    assert lines_of(to_csv(results, ASKERS))[0]["slim_mean_kl"] == ""


def test_drift_by_verdict():
    def result(identity, kl, lora):
        verdict = None if identity is None else Verdict(identity, 1.0, 1.0, 0.5, False, identity)
        slim = PromptAnswer("slim", "SLIM", "slim", "x", 1, "end", verdict=verdict, mean_kl=kl)
        return PromptResult(
            1, "x", (Message("user", "Hi"),), (PromptAnswer("lora", "LoRA", "lora", "x", 1, "end", mean_kl=lora), slim)
        )

    groups = mean_drift([result(1.0, 0.0, 2.0), result(0.1, 0.5, 1.0), result(0.95, 0.25, 4.0), RESULTS[1]])
    assert [(g.kind, g.prompts, g.means) for g in groups] == [
        ("like", 1, {"LoRA": 1.0, "SLIM": 0.5}),
        ("unlike", 2, {"LoRA": 3.0, "SLIM": 0.125}),
    ]
    assert [(g.kind, g.prompts) for g in mean_drift([result(None, 0.5, 1.0)])] == [(None, 1)]
