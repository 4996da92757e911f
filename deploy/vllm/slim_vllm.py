# SPDX-License-Identifier: Apache-2.0
"""SLIM adapters in vLLM 0.32.0: a plugin for experiments.

`slim_core.peft_tools.export_vllm` writes a SLIM adapter as a LoRA whose factors also hold the router and the clusters,
so vLLM's own loader reads it. The classes here take the place of vLLM's LoRA layers; rows of the base and of plain
LoRAs are computed by those as before, in the same batch.

A context is the mean of a request's latest turn. Which tokens belong to which request is read from the attention's
metadata. A request is known by the first block of its keys and values: it keeps that block as long as it runs, and
begins at position 0 whenever it gets another. Token ids, by which turns are found, are those that the embedding reads.

It needs `--enforce-eager --no-enable-prefix-caching --dtype float32`, one worker, and a CPU: it was tried on no GPU.
While it is installed, vLLM serves no LoRA otherwise.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import vllm
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.lora import layers as lora_layers
from vllm.lora import utils
from vllm.platforms import current_platform


VERSION = "0.32.0"
# The first numbers of a module's header, as `slim_core.peft_tools.export_vllm` writes it.
MARK = 7_514_681
FIELDS = ("experts", "identity", "rank", "clusters", "top_k", "warmup", "carry_up", "max_distance", "opening")
LENGTH_BUCKETS = 16
# The most token ids that open a turn, in any adapter.
LONGEST_OPENING = 32
# A request that ends is not heard of: the ones not read from for longest are forgotten.
MOST_REQUESTS = 4096


class Router(NamedTuple):
    """The router and the clusters of one or more Linears with the same input; C channels, float32.

    Attributes:
        numbers: the whole numbers of the header, by name.
        strength: of the gate.
        opening: token ids that open a turn.
        reference: (16,) distances that are in domain, by the length of a context.
        weight: (E + I, C), and `bias` (E + I,).
        center: (N, C), and `scale` (N, C), one over the standard deviation.
        direction: (N, C), and `near` (N,): `direction @ x + near` orders the centres by their distance.
    """

    numbers: dict[str, int]
    strength: float
    opening: tuple[int, ...]
    reference: Tensor
    weight: Tensor
    bias: Tensor
    center: Tensor
    scale: Tensor
    direction: Tensor
    near: Tensor


class Experts(NamedTuple):
    """One Linear of a layer that vLLM may have packed from several.

    Attributes:
        a: (E r, C), and `b` (C_out, E r).
        router: None if it is that of the Linear before.
    """

    a: Tensor
    b: Tensor
    router: Router | None


def read(a: Tensor, b: Tensor) -> Experts | None:
    """What `export_vllm` wrote as a LoRA's factors, (R, C) and (C_out, R); None if it is a plain LoRA."""
    header = a[0].tolist()
    if header[0] != MARK:
        return None
    numbers = dict(zip(FIELDS, map(int, header[1:]), strict=False))
    rank = numbers["rank"]
    factors = a[1 : 1 + rank].clone(), b[:, 1 : 1 + rank].clone()
    outputs, clusters = numbers["experts"] + numbers["identity"], numbers["clusters"]
    if not clusters:
        return Experts(*factors, None)
    at = 1 + len(FIELDS)
    strength, at = header[at], at + 1
    opening, at = tuple(map(int, header[at : at + numbers["opening"]])), at + numbers["opening"]
    reference, at = a[0, at : at + LENGTH_BUCKETS].clone(), at + LENGTH_BUCKETS
    bias = a[0, at : at + outputs].clone()
    rest = a[1 + rank :]
    sizes = [outputs, clusters, clusters]
    weight, center, scale = (part.clone() for part in rest[: sum(sizes)].split(sizes))
    mean = center.mean(0)
    offset = center - mean
    near = (offset * (offset + 2 * mean)).sum(-1)
    router = Router(numbers, strength, opening, reference, weight, bias, center, scale, -2 * offset, near)
    return Experts(*factors, router)


@dataclass
class Request:
    """What is remembered of a running request.

    Attributes:
        read: tokens read.
        ids: the latest of them.
        lengths: tokens in the open context, by opening.
        sums: (C,) float32 sum over these, by router: the layer's id, and which of its Linears.
    """

    read: int = 0
    ids: list[int] = field(default_factory=list)
    lengths: dict[tuple[int, ...], int] = field(default_factory=dict)
    sums: dict[tuple[int, int], Tensor] = field(default_factory=dict)


class Span(NamedTuple):
    """Tokens `start` to `end` of a forward, of one request."""

    start: int
    end: int
    request: Request


class Layout(NamedTuple):
    """The contexts of a span, for one opening.

    Attributes:
        begins: places in the span where a context begins.
        lengths: (T,) float32 tokens of each token's context.
    """

    begins: list[int]
    lengths: Tensor


class Forward:
    """A forward of the model over T tokens of several requests.

    Args:
        ids: (T,) token ids.
        metadata: of an attention layer.
    """

    def __init__(self, ids: Tensor, metadata: Any) -> None:
        starts = metadata.query_start_loc.tolist()
        blocks = metadata.block_table[:, 0].tolist()
        tokens = ids.tolist()
        self.spans: list[Span] = []
        for row, length in enumerate(metadata.seq_lens.tolist()):
            start, end = starts[row : row + 2]
            if start == end:
                continue
            before = length - (end - start)
            request = _requests.get(blocks[row]) if before else Request()
            if request is None or request.read != before:
                raise RuntimeError(
                    f"SLIM has not read the {before} tokens that a request continues from. Start vLLM without what "
                    "brings keys and values from elsewhere."
                )
            _requests[blocks[row]] = request
            _requests.move_to_end(blocks[row])
            request.read = length
            request.ids = (request.ids + tokens[start:end])[-(end - start) - LONGEST_OPENING :]
            self.spans.append(Span(start, end, request))
        while len(_requests) > MOST_REQUESTS:
            _requests.popitem(last=False)
        self._layouts: dict[tuple[int, tuple[int, ...]], Layout] = {}
        # By adapter: the sum of the excesses of its routers so far, (T,), and how many they were.
        self.excess: dict[int, tuple[Tensor, int]] = {}

    def layout(self, number: int, opening: tuple[int, ...]) -> Layout:
        """Of one span."""
        layout = self._layouts.get((number, opening))
        if layout is None:
            layout = self._layouts[number, opening] = self._lay_out(self.spans[number], opening)
        return layout

    def _lay_out(self, span: Span, opening: tuple[int, ...]) -> Layout:
        request, tokens = span.request, span.end - span.start
        earlier, length = len(request.ids) - tokens, request.lengths.get(opening, 0)
        goes_on, begins, lengths = request.read > tokens, [], []
        for place in range(tokens):
            last = earlier + place + 1
            opens = bool(opening) and tuple(request.ids[max(0, last - len(opening)) : last]) == opening
            if opens or (place == 0 and not goes_on):
                begins.append(place)
                length = 0
            length += 1
            lengths.append(length)
        request.lengths[opening] = length
        return Layout(begins, torch.tensor(lengths, dtype=torch.float32))

    def means(self, number: int, opening: tuple[int, ...], key: tuple[int, int], x: Tensor) -> Tensor:
        """(T, C) contexts of a span's tokens, of which the router `key` is given `x`, (T, C)."""
        layout, request = self.layout(number, opening), self.spans[number].request
        edges = [*layout.begins, len(x)]
        sums = []
        if edges[0] > 0:
            sums.append(x[: edges[0]].cumsum(0) + request.sums[key])
        sums += [x[begin:end].cumsum(0) for begin, end in pairwise(edges)]
        whole = torch.cat(sums)
        request.sums[key] = whole[-1].clone()
        return whole / layout.lengths.unsqueeze(-1)


_requests: OrderedDict[int, Request] = OrderedDict()
_forward: Forward | None = None


def begin(ids: Tensor) -> None:
    """Called with the token ids of each forward."""
    global _forward
    _forward = None
    if not is_forward_context_available():
        return
    metadata = get_forward_context().attn_metadata
    if isinstance(metadata, dict) and metadata:  # None while vLLM measures its memory
        _forward = Forward(ids, next(iter(metadata.values())))


def running() -> Forward | None:
    """The running forward; None while vLLM measures its memory."""
    if _forward is None and is_forward_context_available() and get_forward_context().attn_metadata:
        raise RuntimeError("SLIM was not told which tokens are read; a model that gets no token ids cannot have it.")
    return _forward


def weights_of(
    x: Tensor, router: Router, key: tuple[int, int], slot: int, numbers: list[int], forward: Forward
) -> Tensor:
    """(T, E) weights of the LoRA experts for the tokens of some spans.

    Args:
        x: (T, C) float32.
        router: for them.
        key: of the router, as in `Request`.
        slot: of the adapter.
        numbers: of the spans.
        forward: the running one.
    """
    spans = [forward.spans[number] for number in numbers]
    parts = x.split([span.end - span.start for span in spans])
    context = torch.cat(
        [forward.means(number, router.opening, key, part) for number, part in zip(numbers, parts, strict=True)]
    )
    lengths = torch.cat([forward.layout(number, router.opening).lengths for number in numbers])
    cluster = F.linear(context, router.direction, router.near).argmin(-1)
    z = (context - router.center[cluster]) * router.scale[cluster]
    if router.numbers["max_distance"]:
        distance = z.abs().amax(-1) - 1
    else:
        distance = torch.linalg.vector_norm(z, dim=-1) / math.sqrt(z.shape[-1]) - 1
    edges = 2 ** torch.arange(1, LENGTH_BUCKETS)
    excess = F.relu(distance - router.reference[torch.bucketize(lengths, edges, right=True)])
    if router.numbers["carry_up"]:
        total, count = forward.excess.get(slot, (torch.zeros_like(excess), 0))
        forward.excess[slot] = total + excess, count + 1
        excess = (total + excess) / (count + 1)
    gate = (1 - router.strength * excess).clamp(0, 1)
    gate = gate.masked_fill(lengths <= router.numbers["warmup"], 0)
    kept, index = F.linear(x, router.weight, router.bias).topk(router.numbers["top_k"], dim=-1)
    weights = x.new_zeros(len(x), len(router.bias)).scatter(-1, index, kept.softmax(-1))
    return weights[:, : router.numbers["experts"]] * gate.unsqueeze(-1)


def check(config: Any, lora_config: Any) -> None:
    """Whether SLIM can be computed with vLLM's settings.

    Args:
        config: vLLM's own, of everything.
        lora_config: its part about LoRAs.

    Raises:
        RuntimeError: if not, with the remedy.
    """
    needed = {
        "--no-enable-prefix-caching": not config.cache_config.enable_prefix_caching,
        "--enforce-eager": config.model_config.enforce_eager,
        "--dtype float32": lora_config.lora_dtype == torch.float32,
        "one worker": config.parallel_config.world_size == 1,
        "no speculative decoding": config.speculative_config is None,
        "vLLM for CPUs": current_platform.is_cpu(),
    }
    missing = [need for need, there in needed.items() if not there]
    if missing:
        raise RuntimeError(f"The plugin slim-vllm needs {', '.join(missing)}. To serve LoRAs otherwise, uninstall it.")


class SlimLayer:
    """Put before one of vLLM's LoRA layers: adds SLIM to the rows whose adapter has it."""

    def create_lora_weights(self, max_loras: int, lora_config: Any, model_config: Any = None) -> None:
        super().create_lora_weights(max_loras, lora_config, model_config)
        self.slim: dict[int, list[Experts | None]] = {}
        check(get_current_vllm_config(), lora_config)

    def reset_lora(self, index: int) -> None:
        super().reset_lora(index)
        self.slim.pop(index, None)

    def set_lora(self, index: int, lora_a: Any, lora_b: Any) -> None:
        super().set_lora(index, lora_a, lora_b)
        factors = zip(self.lora_a_stacked, self.lora_b_stacked, strict=True)
        slices = [read(a[index, 0], b[index, 0]) for a, b in factors]
        if any(slices):
            if next(filter(None, slices)).router is None:
                raise ValueError("vLLM separates Linears that share a router in this SLIM adapter; it cannot be used.")
            # vLLM's own part then adds zeros.
            self.reset_lora(index)
            self.slim[index] = slices

    def apply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        output = super().apply(x, bias)
        forward = running() if self.slim else None
        if forward is not None:
            slots = self.punica_wrapper.token_lora_indices.tolist()
            for slot, slices in self.slim.items():
                numbers = [n for n, span in enumerate(forward.spans) if slots[span.start] == slot]
                if numbers:
                    self._add(x, output, slot, slices, numbers, forward)
        return output

    def _add(
        self, x: Tensor, output: Tensor, slot: int, slices: list[Experts | None], numbers: list[int], forward: Forward
    ) -> None:
        places = torch.cat([torch.arange(forward.spans[n].start, forward.spans[n].end) for n in numbers])
        x, weights, first = x[places].float(), None, 0
        for number, (experts, width) in enumerate(zip(slices, self.output_slices, strict=True)):
            if experts is not None:
                if experts.router is not None:
                    weights = weights_of(x, experts.router, (id(self), number), slot, numbers, forward)
                assert weights is not None
                if weights.any():
                    hidden = F.linear(x, experts.a).unflatten(-1, (weights.shape[1], -1)) * weights.unsqueeze(-1)
                    output[places, first : first + width] += F.linear(hidden.flatten(-2), experts.b).to(output.dtype)
            first += width


class Embedding(lora_layers.VocabParallelEmbeddingWithLoRA):
    """Tells the other layers the token ids of a forward."""

    def forward(self, x: Tensor) -> Tensor:
        begin(x)
        return super().forward(x)


def register() -> None:
    """Put SLIM's classes before vLLM's."""
    if vllm.__version__ != VERSION:
        raise RuntimeError(
            f"The plugin slim-vllm is for vLLM {VERSION}, and this is {vllm.__version__}: install that or remove it."
        )
    if Embedding in utils._all_lora_classes:
        return
    names = ("ColumnParallelLinear", "MergedColumnParallelLinear", "QKVParallelLinear", "MergedQKVParallelLinear")
    names += ("RowParallelLinear", "ReplicatedLinear")
    plain = [getattr(lora_layers, f"{name}WithLoRA") for name in names]
    slim = [type(f"Slim{kind.__name__}", (SlimLayer, kind), {}) for kind in plain]
    utils._all_lora_classes = (Embedding, *slim, *utils._all_lora_classes)
