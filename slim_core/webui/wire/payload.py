# SPDX-License-Identifier: Apache-2.0
"""Routing and drift packed for the browser. A token's share in a block is one byte; a full chunk never changes."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ...inference.types import Drift, RoutingRecord
from ...peft_tools import identity_share


# Tokens in a chunk. Gradio sends only what has changed in a value: a full chunk is sent once, and only the last grows.
CHUNK = 128
SCOPES = ("prompt", "answer", "both")


def pack(shares: Tensor) -> str:
    """Shares from 0 to 1 as base64 bytes."""
    return base64.b64encode((shares * 255).round().clamp(0, 255).to(torch.uint8).numpy().tobytes()).decode("ascii")


def pack_numbers(numbers: Tensor) -> str:
    """Numbers as base64 of float32."""
    return base64.b64encode(numbers.float().numpy().astype("<f4").tobytes()).decode("ascii")


class RoutingPacker:
    """Packs a growing record, reading only the tokens that are new since the last time.

    The record of 2,000 tokens in 280 Linears holds millions of numbers, and is packed several times a second. Threads
    may share a packer: a page may be drawn while its visitor opens the routing view.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._shares: list[Tensor] = []
        self._chunks: list[str] = []
        self._tokens = 0
        # For each token, the mean over the Linears of its gate, distance and reference.
        self._curves: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._layer_sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def pack(self, routing: RoutingRecord) -> dict[str, Any]:
        """What the routing view draws. Its `chunks` hold a byte for each block, token after token."""
        # Two threads that added the same tokens would count them twice.
        with self._lock:
            return self._pack(routing)

    def _pack(self, routing: RoutingRecord) -> dict[str, Any]:
        total = routing.weights.shape[1]
        if total < self._tokens:
            self._forget()
        blocks = sorted(set(routing.blocks))
        if total > self._tokens:
            self._add(routing, blocks, total)
        return {
            "column": routing.variant,
            "tokens": list(routing.tokens[:total]),
            "prompt_tokens": min(routing.prompt_tokens, total),
            "blocks": blocks,
            "chunk": CHUNK,
            "chunks": list(self._chunks),
            "token_share": self._token_shares(),
            "turn": routing.turn,
            "gate": self._curve("gate", pack),
            "distance": self._curve("distance", pack_numbers),
            "reference": self._curve("reference", pack_numbers),
            "share": share_name(routing),
            "experts": routing.num_experts,
            "all_experts": routing.weights.shape[2],
            "bars": {scope: self._bars(scope) for scope in SCOPES},
            "use": {scope: self._use(scope) for scope in SCOPES},
            "imbalance": {scope: imbalance(self._use(scope)[: routing.num_experts]) for scope in SCOPES},
        }

    def _add(self, routing: RoutingRecord, blocks: list[int], total: int) -> None:
        start = self._tokens
        shares = shares_of(routing, routing.weights[:, start:])
        index = torch.tensor([blocks.index(block) for block in routing.blocks])
        counts = torch.bincount(index, minlength=len(blocks)).float()
        by_block = torch.zeros(len(blocks), total - start).index_add_(0, index, shares.float()) / counts[:, None]
        self._shares.append(by_block.T.contiguous())
        border = max(0, min(routing.prompt_tokens, total) - start)
        for scope, tokens in (("prompt", slice(0, border)), ("answer", slice(border, None))):
            weights = routing.weights[:, start:][:, tokens].float().sum((0, 1)) / len(routing.modules)
            layers = by_block[:, tokens].sum(-1)
            self._sums[scope] = self._sums.get(scope, 0) + weights
            self._layer_sums[scope] = self._layer_sums.get(scope, 0) + layers
            self._counts[scope] = self._counts.get(scope, 0) + by_block[:, tokens].shape[1]
        for name in ("gate", "distance", "reference"):
            mean = getattr(routing, name)[:, start:].float().mean(0)
            self._curves[name] = torch.cat([self._curves[name], mean]) if name in self._curves else mean
        self._tokens = total
        packed = torch.cat(self._shares)
        self._shares = [packed]
        full = max(0, len(self._chunks) - 1)  # the last one may have grown
        self._chunks[full:] = [pack(piece) for piece in packed[full * CHUNK :].split(CHUNK)]

    def _token_shares(self) -> list[str]:
        # The strip shows a token's mean over all blocks, in the same chunks.
        return [pack(piece.mean(-1)) for piece in self._shares[0].split(CHUNK)] if self._shares else []

    def _curve(self, name: str, packed: Callable[[Tensor], str]) -> list[str]:
        return [packed(piece) for piece in self._curves[name].split(CHUNK)] if name in self._curves else []

    def _mean(self, sums: dict[str, Tensor], scope: str) -> list[float]:
        scopes = ("prompt", "answer") if scope == "both" else (scope,)
        count = sum(self._counts.get(name, 0) for name in scopes)
        if not count:
            return []
        total = reduce(torch.add, [sums[name] for name in scopes])
        return [round(float(x), 4) for x in total / count]

    def _bars(self, scope: str) -> list[float]:
        return self._mean(self._layer_sums, scope)

    def _use(self, scope: str) -> list[float]:
        return self._mean(self._sums, scope)


def share_name(routing: RoutingRecord) -> str:
    """What the shares of a record stand for."""
    return "largest expert" if routing.among_experts else "identity"


def shares_of(routing: RoutingRecord, weights: Tensor) -> Tensor:
    """(...) what is drawn for (..., E + I) weights: the identity share, or the largest weight if the router has only
    LoRA experts.
    """
    return weights.float().amax(-1) if routing.among_experts else identity_share(weights, routing.num_experts)


def imbalance(use: list[float]) -> float | None:
    """The largest use of a LoRA expert over the mean: 1 if all are used alike, their number if only one is used."""
    total = sum(use)
    return round(max(use) * len(use) / total, 2) if total > 1e-6 else None


def token_detail(routing: RoutingRecord, token: int) -> dict[str, Any]:
    """All that is recorded of one token: for each Linear its experts' weights, share, gate, distance and cluster."""
    shares = shares_of(routing, routing.weights[:, token])
    return {
        "token": token,
        "text": routing.tokens[token],
        "part": "prompt" if token < routing.prompt_tokens else "answer",
        "share": share_name(routing),
        "experts": routing.num_experts,
        "rows": [
            {
                "block": routing.blocks[i],
                "module": routing.modules[i],
                "share": round(float(shares[i]), 3),
                "weights": [round(float(w), 3) for w in routing.weights[i, token]],
                "distance": round(float(routing.distance[i, token]), 2),
                "reference": round(float(routing.reference[i, token]), 2),
                "gate": round(float(routing.gate[i, token]), 3),
                "cluster": int(routing.cluster[i, token]),
            }
            for i in range(len(routing.modules))
        ],
    }


def pack_drift(drift: Drift) -> dict[str, Any]:
    """What the drift view draws."""
    return {
        "tokens": list(drift.tokens),
        "variants": [
            {
                "name": variant.variant,
                "log_ratio": [round(float(x), 4) for x in variant.log_ratio],
                "kl": [round(float(x), 4) for x in variant.kl],
                "total": round(variant.total, 4),
            }
            for variant in drift.variants
        ],
    }
