# SPDX-License-Identifier: Apache-2.0
"""Data-parallel training: the clusters of all ranks are those of one process that sees the whole batch.

Two processes run all scenarios one after the other, because starting them is what takes the time.
"""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from slim_core import SlimConfig
from slim_core.method import SlimLayer
from tests.conftest import build
from tests.method import reference


pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")

RANKS = 2
STEPS = 3
ACCUMULATE = 2
PATIENCE = 300  # seconds; a machine may be busy
# Valid tokens of each rank's two rows. As many labels on each rank, so that its mean loss weighs as much.
LENGTHS = ((7, 10), (9, 8))
# Comparable to one process: no masks of each rank's own, and no quantile, of which ranks average their own.
START = {"merge": "none", "cluster_init": "random", "yield_mode": "paper"}
PLAIN = START | {"distance_scope": "token", "distance": "max"}
CONTEXTS = START | {"distance_scope": "context", "turn_opening": [7]}
RICH = {"merge": "fast", "mask_rate": 0.3, "dropout": 0.1, "yield_mode": "calibrated", "router_scope": "block"}
# A rank that saves or evaluates alone, and what DDP does with buffers, must change nothing.
SCENARIOS = {
    "plain": (PLAIN, {}),
    "contexts": (CONTEXTS, {}),
    "rich": (RICH, {"broadcast_buffers": False}),
    "one rank saves": (PLAIN, {}),
    "one rank saves, buffers are not broadcast": (PLAIN, {"broadcast_buffers": False}),
    "one rank evaluates": (PLAIN, {}),
    "groups of one": (PLAIN, {"broadcast_buffers": False}),
}


def adapt(**changes) -> PeftModel:
    start = {"r": 2, "num_experts": 2, "num_clusters": 4, "init_weights": False, "yield_strength": 0.1}
    base = build("llama")
    torch.manual_seed(0)
    model = get_peft_model(base, SlimConfig(**(start | changes))).train()
    if changes == CONTEXTS:
        # The mean of the tokens would start from the first rank's; so the start is over.
        for name, count in model.named_buffers():
            if "slim_count" in name:
                count.fill_(1)
    return model


def batch(step: int, part: int, rank: int) -> dict[str, Tensor]:
    """(2, 10) one rank's rows of one of a step's forwards, padded on the right."""
    generator = torch.Generator().manual_seed(100 * step + 10 * part + rank)
    ids = torch.randint(3, 99, (2, 10), generator=generator)
    mask = (torch.arange(10) < torch.tensor(LENGTHS[rank])[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def state(model: PeftModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if "slim_" in name}


def train(model: PeftModel, ranks: list[int], between=lambda step: None, **ddp) -> dict[str, dict[str, Tensor]]:
    """Train on the rows of `ranks`; the centres before the first of them moved, and the state in the end."""
    parallel = DistributedDataParallel(model, **ddp) if dist.is_initialized() else model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    first = None
    for step in range(STEPS):
        for part in range(ACCUMULATE):
            rows = [batch(step, part, rank) for rank in ranks]
            inputs = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
            last = part == ACCUMULATE - 1
            alone = contextlib.nullcontext() if last or parallel is model else parallel.no_sync()
            with alone:
                (parallel(**inputs).loss / ACCUMULATE).backward()
            if first is None:
                layers = {n: m for n, m in model.named_modules() if isinstance(m, SlimLayer) and len(m.slim_center)}
                first = {n: m.slim_center["default"].clone() for n, m in layers.items()}
            if not last:
                between(step)
        optimizer.step()
        optimizer.zero_grad()
        between(step)
    return {"first": first, "last": state(model)}


def run_rank(rank: int, folder: str) -> None:
    """One process: all scenarios."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=PATIENCE // 2),
    )
    groups = [dist.new_group([r]) for r in range(RANKS)]
    results = {}
    for name, (config, ddp) in SCENARIOS.items():
        model = adapt(**config)
        # What is random differs between ranks.
        torch.manual_seed(rank)

        def between(step, model=model, name=name):
            if rank == 0 and "saves" in name:
                model.save_pretrained(f"{folder}/saved")
            if rank == 0 and "evaluates" in name:
                model.eval()(input_ids=torch.arange(3, 9)[None])
                model.train()

        if name == "groups of one":
            model.base_model.context.process_group = groups[rank]
        results[name] = train(model, [rank], between, **ddp)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[dict]:
    """The results of each rank, by scenario."""
    folder = tmp_path_factory.mktemp("ranks")
    # A server that has read this module forks both: reading it is what takes the time.
    multiprocessing.set_forkserver_preload([__name__])
    processes = mp.start_processes(run_rank, (str(folder),), RANKS, join=False, start_method="forkserver")
    deadline = time.monotonic() + PATIENCE
    while not processes.join(timeout=1):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            pytest.fail("the ranks hang")
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(RANKS)]


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, dict[str, Tensor]]]:
    """What one process makes of the whole batch, by scenario."""
    return {"plain": train(adapt(**PLAIN), [0, 1]), "contexts": train(adapt(**CONTEXTS), [0, 1])}


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name != "groups of one"])
def test_all_ranks_hold_the_same_adapter(scenario, runs):
    ours, theirs = (run[scenario]["last"] for run in runs)
    assert any("slim_center" in name for name in ours) and any("slim_router" in name for name in ours)
    assert_equal(theirs, ours)


@pytest.mark.parametrize(("scenario", "config"), [("plain", PLAIN), ("contexts", CONTEXTS)], ids=["plain", "contexts"])
def test_ranks_together_learn_what_one_process_learns_from_the_whole_batch(scenario, config, runs, whole):
    expected, actual = whole[scenario]["last"], runs[0][scenario]["last"]
    # Sums of two ranks are rounded in another order, which depends on the processor.
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=5e-5)
    # It has learned: both are not just the start.
    start = state(adapt(**config))
    counts = {int((actual[name] - start[name]).sum()) for name in start if "slim_count" in name}
    assert counts == {STEPS * ACCUMULATE * sum(map(sum, LENGTHS))}
    parts = ("slim_A", "slim_B", "slim_router", "slim_center")
    for part in parts if scenario == "plain" else (*parts, "slim_token_mean", "slim_token_var"):
        assert any((actual[name] - start[name]).abs().max() > 1e-3 for name in start if part in name), part


def test_first_centres_are_the_same_contexts_on_every_rank(runs):
    ours, theirs = (run["rich"]["first"] for run in runs)
    assert_equal(theirs, ours)
    # They are contexts of the first rank alone: the first layer reads normalised embeddings.
    base = build("llama")
    rows = batch(0, 0, rank=0)
    mask = rows["attention_mask"]
    tokens = base.model.layers[0].input_layernorm(base.model.embed_tokens(rows["input_ids"])).detach()
    tokens = reference.batch_contexts(tokens, mask=mask)[0][mask == 1].float()
    centres = next(centre for name, centre in ours.items() if name.endswith("layers.0.self_attn.q_proj"))
    assert torch.cdist(centres, tokens).amin(1).max() < 1e-3
    assert len(centres.unique(dim=0)) == len(centres)


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if "one rank" in name])
def test_what_one_rank_does_alone_changes_nothing(scenario, runs):
    for run in runs:
        assert_equal(run[scenario]["last"], run["plain"]["last"])


def test_a_group_of_its_own_keeps_a_ranks_tokens_to_itself(runs):
    for lengths, run in zip(LENGTHS, runs, strict=True):
        counts = {int(t.sum()) for name, t in run["groups of one"]["last"].items() if "slim_count" in name}
        assert counts == {STEPS * ACCUMULATE * sum(lengths)}
    ours, theirs = ({n: t for n, t in run["groups of one"]["last"].items() if "slim_center" in n} for run in runs)
    assert not all(torch.equal(ours[name], theirs[name]) for name in ours)
