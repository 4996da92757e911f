# SPDX-License-Identifier: Apache-2.0
"""How large an adapter from outside may be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of one adapter. The defaults fit a rank-64 LoRA on every Linear of a 7-billion-parameter model.

    Attributes:
        config_bytes: of `adapter_config.json`.
        weights_bytes: of `adapter_model.safetensors`.
        header_bytes: of the table of contents at its start.
        tensors: in that file.
        json_depth: of nested lists and objects.
        names: in `target_modules` and lists like it.
        patterns: entries of `rank_pattern` and `alpha_pattern`. Each is compared with each Linear.
        name_length: characters of a module's name.
        rank: of one module, all experts together.
        experts: LoRA experts, and likewise identity experts.
        clusters: of one router.
        alpha: scaling numerator.
        magnitude: largest absolute weight. No trained factor comes near float16's largest number.
        seconds: a download may take.
        entrywise: whether SLIM may drop entries of products one by one (`merge="dare"`), which slows down every row.
    """

    config_bytes: int = 64 * 1024
    weights_bytes: int = 768 * 1024 * 1024
    header_bytes: int = 8 * 1024 * 1024
    tensors: int = 20_000
    json_depth: int = 8
    names: int = 1_000
    patterns: int = 250
    name_length: int = 200
    rank: int = 1_024
    experts: int = 256
    clusters: int = 1_024
    alpha: float = 4_096
    magnitude: float = 65_504
    seconds: float = 300
    entrywise: bool = False


DEFAULT = Limits()
# For what the operator names: it is their disk and their time.
OPERATOR = Limits(weights_bytes=64 * 1024**3, seconds=3600, entrywise=True)
