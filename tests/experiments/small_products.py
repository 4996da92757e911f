# SPDX-License-Identifier: Apache-2.0
"""Which library multiplies a few rows by a weight fastest on this processor?

The engine's choices on CPUs (`slim_core/inference/cpu_linear.py`, `single_token.py`) follow this table. Each product
is repeated over as many weights as together take 64 MB, so that none of them is in the processor's nearest caches, as
in a model. The first table has microseconds for a weight of the base; the second has what a LoRA adds to one token:
the rate in GB/s at which its factors are read.

    python -m tests.experiments.small_products --threads 1 2
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from slim_core.blas import one_thread_for_numpy


one_thread_for_numpy()
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from slim_core.evaluation.bench.turns import repeated, summary, take_turns  # noqa: E402
from slim_core.inference.cpu_linear import has_operator, onednn  # noqa: E402


BYTES = 64 * 2**20
WEIGHTS = [(192, 192), (512, 192), (384, 384), (512, 512), (768, 768), (3072, 768), (2048, 2048)]
FACTORS = [(64, 192), (64, 512), (128, 768), (128, 3072), (128, 2048), (128, 8192)]


def weights_of(out: int, width: int) -> list[torch.Tensor]:
    """As many (out, width) float32 weights as `BYTES` hold."""
    return [torch.randn(out, width) * 0.05 for _ in range(max(2, BYTES // (4 * out * width)))]


def medians(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each way, which take turns."""
    measured = take_turns({name: repeated(way, "cpu") for name, way in ways.items()}, rounds)
    return {one.way: one.seconds for one in summary(measured, ())}


def base_ways(weights: list[torch.Tensor], x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Each multiplies (rows, 1, width) `x` by all weights."""
    ways: dict[str, Callable[[], object]] = {
        "PyTorch": lambda: [F.linear(x, weight) for weight in weights],
        "NumPy, one thread": lambda: [np.matvec(weight.numpy(), x.numpy()) for weight in weights],
    }
    if has_operator():
        packed = [torch.ops.mkldnn._reorder_linear_weight(weight, 3) for weight in weights]
        ways |= {
            "oneDNN": lambda: [onednn(x, weight, None) for weight in weights],
            "oneDNN, packed": lambda: [onednn(x, weight, None) for weight in packed],
        }
    return ways


def factor_ways(factors: list[torch.Tensor]) -> dict[str, Callable[[], object]]:
    """Each multiplies a token by all of the (rank, width) factors, or the rank's numbers by their transposes."""
    rank, width = factors[0].shape
    token, hidden = torch.randn(width), torch.randn(rank)
    return {
        "first, NumPy": lambda: [factor.numpy().dot(token.numpy()) for factor in factors],
        "second, NumPy": lambda: [hidden.numpy().dot(factor.numpy()) for factor in factors],
        "first, PyTorch": lambda: [torch.mv(factor, token) for factor in factors],
        "second, PyTorch": lambda: [torch.mv(factor.t(), hidden) for factor in factors],
    }


def show(title: str, names: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}\n\n| | " + " | ".join(names) + " |\n|" + " --- |" + " ---: |" * len(names), flush=True)
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of PyTorch")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    for threads in args.threads:
        torch.set_num_threads(threads)
        rows, names = [], []
        for out, width in WEIGHTS:
            weights = weights_of(out, width)
            for count in args.rows:
                found = medians(base_ways(weights, torch.randn(count, 1, width)), args.rounds)
                names = list(found)
                micro = [f"{seconds / len(weights) * 1e6:.1f}" for seconds in found.values()]
                rows.append([f"{out} × {width}, {count} row{'s' * (count > 1)}", *micro])
        show(f"A weight of the base, µs, {threads} thread{'s' * (threads > 1)} of PyTorch", names, rows)
        rows = []
        for rank, width in FACTORS:
            factors = weights_of(rank, width)
            found = medians(factor_ways(factors), args.rounds)
            names = list(found)
            size = 4 * rank * width * len(factors) / 1e9
            rows.append([f"{rank} × {width}", *(f"{size / seconds:.0f}" for seconds in found.values())])
        show(f"A LoRA's factors, GB/s, {threads} thread{'s' * (threads > 1)} of PyTorch", names, rows)


if __name__ == "__main__":
    main()
