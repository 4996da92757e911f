# SPDX-License-Identifier: Apache-2.0
"""The benchmark times what it says: the SLIM variants compute the same, and every token keeps K LoRA experts."""

import pytest
import torch
from typer.testing import CliRunner

from slim_core import SlimConfig, trace_routing
from slim_core.cli import app
from slim_core.evaluation.bench import turns
from slim_core.evaluation.bench.layer import LoopedLinear, Setting, settings, time_setting, variants_of


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    monkeypatch.setattr(turns, "LEAST_SECONDS", 1e-3)


@pytest.mark.parametrize("merge", ["fast", "none"])
def test_the_loop_and_the_sliced_factors_compute_what_slim_computes(merge):
    setting = Setting("cpu", torch.float32, width=48, tokens=20, backward=False)
    variants = variants_of(setting, SlimConfig(r=2, num_clusters=4, merge=merge, mask_rate=0.4))
    x = torch.randn(1, 20, 48)
    expected = variants["slim"](x)
    assert isinstance(variants["loop over experts"].base_model.model.linear, LoopedLinear)
    assert ("slim, sliced" in variants) == (merge == "fast")
    # With token distances the router sees something else, so that it chooses other experts.
    for name in variants.keys() - {"base", "peft lora", "slim", "slim, token distance", "slim, gate closed"}:
        torch.testing.assert_close(variants[name](x), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(variants["base"](x), expected)
    with torch.inference_mode():
        assert torch.equal(variants["slim, gate closed"](x), variants["base"](x))
    with trace_routing(variants["slim"]) as trace:
        variants["slim"](x)
    kept = torch.cat([trace.row(row).weights[0] for row in trace.rows]) > 0
    assert (kept[:, :8].sum(-1) == 2).all() and not kept[:, 8:].any()


def test_the_loop_learns_like_slim():
    setting = Setting("cpu", torch.float32, width=32, tokens=20, backward=True)
    variants = variants_of(setting, SlimConfig(r=2, num_clusters=4, merge="none"))
    x = torch.randn(1, 20, 32)
    gradients = []
    for name in ("slim", "loop over experts"):
        variants[name](x).sum().backward()
        gradients.append({n: p.grad for n, p in variants[name].named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_ratios_are_to_the_base_and_to_lora():
    setting = Setting("cpu", torch.float32, width=32, tokens=4, backward=False)
    timings = {t.way: t for t in time_setting(setting, SlimConfig(r=2), rounds=1)}
    assert timings["base"].ratios["base"] == timings["peft lora"].ratios["peft lora"] == 1
    assert all(t.seconds > 0 for t in timings.values())


def test_every_case_is_run_forward_and_backward():
    cases = list(settings("cpu", [1024, 4096], [1, 512]))
    assert {(c.width, c.tokens, c.backward) for c in cases} == {
        (w, t, b) for w in (1024, 4096) for t in (1, 512) for b in (False, True)
    }


def test_the_command_prints_a_table_for_each_case():
    arguments = ["--width", "32", "--tokens", "2", "--rounds", "1", "--device", "cpu"]
    result = CliRunner().invoke(app, ["bench", "layer", *arguments])
    assert result.exit_code == 0, result.output
    assert result.output.count("loop over experts") == 2 and "LoRA of rank 128" in result.output


@pytest.mark.parametrize("wrong", [["--merge", "dare"], ["--device", "tpu"], ["--rounds", "0"]])
def test_wrong_options_are_refused_without_a_traceback(wrong):
    result = CliRunner().invoke(app, ["bench", "layer", *wrong])
    assert result.exit_code == 2 and "Traceback" not in result.output
