# SPDX-License-Identifier: Apache-2.0
"""Routing and drift as the browser gets them."""

import base64
import contextlib
import threading

import pytest
import torch

from slim_core.base.messages import Message
from slim_core.inference.types import Drift, RoutingRecord, Row, VariantDrift
from slim_core.peft_tools import identity_share
from slim_core.webui.wire import payload
from slim_core.webui.wire.payload import (
    CHUNK,
    RoutingPacker,
    imbalance,
    pack,
    pack_drift,
    token_detail,
)


def routing(tokens=300, prompt=20, linears=6, blocks=2, experts=3, identities=2, seed=0):
    weights = torch.rand(linears, tokens, experts + identities, generator=torch.Generator().manual_seed(seed))
    weights = weights / weights.sum(-1, keepdim=True)
    return RoutingRecord(
        "slim",
        tuple(f"t{i}" for i in range(tokens)),
        prompt,
        tuple(f"m{i}" for i in range(linears)),
        tuple(i * blocks // linears for i in range(linears)),
        experts,
        weights,
        torch.rand(linears, tokens),
        torch.randint(0, 4, (linears, tokens)),
        torch.rand(linears, tokens),
        torch.ones(linears, tokens),
    )


def cut(record, tokens):
    return RoutingRecord(
        record.variant,
        record.tokens[:tokens],
        min(record.prompt_tokens, tokens),
        record.modules,
        record.blocks,
        record.num_experts,
        record.weights[:, :tokens],
        record.distance[:, :tokens],
        record.cluster[:, :tokens],
        record.gate[:, :tokens],
        record.reference[:, :tokens],
    )


def unpack(chunks):
    return b"".join(base64.b64decode(chunk) for chunk in chunks)


def test_shares_become_bytes():
    assert base64.b64decode(pack(torch.tensor([0.0, 0.5, 1.0, 1.2]))) == bytes([0, 128, 255, 255])


def test_a_byte_for_each_token_and_block_is_the_mean_of_its_linears():
    record = routing()
    packed = RoutingPacker().pack(record)
    actual = torch.frombuffer(bytearray(unpack(packed["chunks"])), dtype=torch.uint8).view(300, 2)
    shares = record.identity
    expected = torch.stack([shares[:3].mean(0), shares[3:].mean(0)], 1)
    torch.testing.assert_close(actual.float() / 255, expected, atol=0.003, rtol=0)
    assert len(unpack(packed["token_share"])) == 300
    assert packed["prompt_tokens"] == 20 and packed["blocks"] == [0, 1]


@pytest.mark.parametrize("steps", [(1, 7, 19, 20, 21, 127, 128, 129, 300), (256, 257, 300), (300,)])
def test_a_growing_record_is_packed_as_if_at_once(steps):
    record, packer = routing(), RoutingPacker()
    for tokens in steps:
        packed = packer.pack(cut(record, tokens))
        assert packed == RoutingPacker().pack(cut(record, tokens)) or _close(packed, record, tokens)
    assert packed["chunks"] == RoutingPacker().pack(record)["chunks"]


def _close(packed, record, tokens):
    # Sums in another order differ in the last digit.
    whole = RoutingPacker().pack(cut(record, tokens))
    for part in ("bars", "use"):
        for scope, numbers in whole[part].items():
            assert packed[part][scope] == pytest.approx(numbers, abs=2e-4)
    return packed["chunks"] == whole["chunks"] and packed["token_share"] == whole["token_share"]


def test_full_chunks_do_not_change():
    record, packer = routing(), RoutingPacker()
    early = packer.pack(cut(record, 2 * CHUNK + 5))["chunks"]
    late = packer.pack(record)["chunks"]
    assert early[:2] == late[:2] and early[2] != late[2]


def test_a_shorter_record_starts_again():
    record, packer = routing(), RoutingPacker()
    packer.pack(record)
    assert packer.pack(cut(record, 30)) == RoutingPacker().pack(cut(record, 30))


def test_two_threads_pack_the_same_growing_record(monkeypatch):
    # Each thread waits where it has read how much is packed, until the other is there too or cannot come.
    record, packer = routing(), RoutingPacker()
    meeting = threading.Barrier(2)

    def meet(*arguments):
        with contextlib.suppress(threading.BrokenBarrierError):
            meeting.wait(0.5)
        return identity_share(*arguments)

    packs = []
    with monkeypatch.context() as patch:
        patch.setattr(payload, "identity_share", meet)
        for tokens in (150, 300):
            meeting.reset()
            grown = cut(record, tokens)
            work = [threading.Thread(target=lambda grown=grown: packs.append(packer.pack(grown))) for _ in range(2)]
            for thread in work:
                thread.start()
            for thread in work:
                thread.join()
    assert len(packs) == 4
    for packed, tokens in zip(packs, (150, 150, 300, 300), strict=True):
        assert len(unpack(packed["chunks"])) == 2 * tokens and len(unpack(packed["token_share"])) == tokens
        assert _close(packed, record, tokens)


def test_means_over_prompt_answer_and_both():
    record = routing()
    packed = RoutingPacker().pack(record)
    shares = record.identity
    for scope, part in (("prompt", slice(0, 20)), ("answer", slice(20, None)), ("both", slice(None))):
        assert packed["bars"][scope][0] == pytest.approx(float(shares[:3, part].mean()), abs=1e-3)
        assert packed["use"][scope][4] == pytest.approx(float(record.weights[:, part, 4].mean()), abs=1e-3)
    assert record.answer_identity == pytest.approx(float(shares[:, 20:].mean()))


def test_imbalance():
    assert imbalance([0.1, 0.1, 0.1]) == 1
    assert imbalance([0.0, 0.3, 0.0]) == 3
    assert imbalance([0.0, 0.0]) is None


def test_nothing_yet():
    packed = RoutingPacker().pack(cut(routing(), 0))
    assert packed["chunks"] == [] and packed["bars"]["both"] == [] and packed["imbalance"]["answer"] is None
    assert cut(routing(), 10).answer_identity is None


def test_one_token_in_full():
    record = routing()
    detail = token_detail(record, 25)
    assert detail["part"] == "answer" and detail["text"] == "t25" and len(detail["rows"]) == 6
    row = detail["rows"][5]
    assert row["module"] == "m5" and row["block"] == 1
    assert sum(row["weights"]) == pytest.approx(1, abs=0.01)
    assert row["share"] == pytest.approx(sum(row["weights"][3:]), abs=0.002)
    assert row["cluster"] == int(record.cluster[5, 25])


def test_drift():
    drift = Drift(("a", "b"), (VariantDrift("lora", torch.tensor([1.0, 2.5]), torch.tensor([0.1, 0.2])),))
    packed = pack_drift(drift)
    assert packed["tokens"] == ["a", "b"]
    assert packed["variants"][0]["total"] == 3.5 and packed["variants"][0]["kl"] == [0.1, 0.2]


def test_a_long_answer_of_a_deep_model_is_packed_small(engine):
    engine.blocks = 40
    words = [f" w{i}" for i in range(2000)]
    record = engine.routing(Row("slim", (Message("user", "x"),), True), 100, words)
    packer = RoutingPacker()
    packer.pack(cut(record, 2050))
    packed = packer.pack(record)
    assert sum(map(len, packed["chunks"])) < 130_000
