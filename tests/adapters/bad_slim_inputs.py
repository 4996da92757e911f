# SPDX-License-Identifier: Apache-2.0
"""Ways to spoil a good SLIM adapter, in what a LoRA does not have."""

from __future__ import annotations

import torch

from tests.adapters.small import KEY, config, tensor, tensors
from tests.adapters.spoils import fill, renamed, retype


HUGE = 10**4200  # as a number it is beyond all that a float can be
# The check that fails comes first.
SLIM = {
    "experts 0": ("format", config(num_experts=0), "`num_experts` must be 1 or more"),
    "experts a million": ("format", config(num_experts=10**6), "`num_experts` is 1000000; .* from 0 to 256"),
    "experts true": ("format", config(num_experts=True), "`num_experts` is True"),
    "clusters a million": ("format", config(num_clusters=10**6), "`num_clusters` is 1000000; .* from 0 to 1024"),
    "top-k over the experts": ("format", config(top_k=9), "`top_k` is 9, but there are only 4 experts"),
    "rank of all experts": ("size", config(r=1024), "experts of one Linear have rank 3,072 together; at most 1,024"),
    "alpha huge": ("format", config(alpha=1e300), r"`alpha` is 1e\+300"),
    "yield huge": ("format", config(yield_strength=1e300), r"`yield_strength` is 1e\+300"),
    "distance unknown": ("format", config(distance="os"), "`distance` must be one of 'max', 'rms', not 'os'"),
    "mode a list": ("format", config(yield_mode=["paper"]), "`yield_mode` must be one of"),
    "dare": ("format", config(merge="dare"), "`merge` is 'dare', the slow reference"),
    "newer format": ("format", config(format_version=5), "is saved in format 5; .* Upgrade"),
    "contexts in format 1": ("format", config(format_version=1), "Adapters of format 1 have no contexts"),
    "scope unknown": ("format", config(distance_scope="turn"), "`distance_scope` must be one of 'context', 'token'"),
    "warm-up negative": ("format", config(context_warmup=-1), "`context_warmup` must be 0 or more"),
    "opening a text": ("format", config(turn_opening="<user>"), "`turn_opening`"),
    "opening of 4,201 digits": ("format", config(turn_opening=[HUGE]), "`turn_opening`"),
    "opening of a thousand": ("format", config(turn_opening=[5] * 1000), "`turn_opening`"),
    "modules to save a text": ("format", config(modules_to_save="lm_head"), "`modules_to_save` is the text"),
    **{
        f"{field} of 4,201 digits": ("format", config(**{field: HUGE}), f"`{field}` must be a finite number, not one")
        for field in (
            "balance_coefficient",
            "cluster_momentum",
            "dropout",
            "l1_coefficient",
            "mask_rate",
            "yield_quantile",
        )
    },
    "top-k of 4,201 digits": ("format", config(top_k=HUGE), "`top_k` is one of more than 40 digits"),
    "seed of 4,201 digits": ("format", config(mask_seed=HUGE), "`mask_seed` must be below"),
    "format of 4,201 digits": ("format", config(format_version=HUGE), "in format one of more than 40 digits"),
    "unknown field": ("format", config(lora_alpha=8), "'lora_alpha' is unknown and set to"),
    "fingerprint a list": ("format", config(base_fingerprint=[1]), r"`base_fingerprint` is \[1\]"),
    "fingerprint of another base": (
        "fits this base",
        config(base_fingerprint={"model.layers.*.self_attn.q_proj": "9 x (64 -> 64)"}),
        "made for another base: .*9 x",
    ),
    "fingerprint of no base": (
        "fits this base",
        config(base_fingerprint={}),
        "made for another base: .*targets by name",
    ),
    "no router": (
        "fits this base",
        tensors(lambda saved: {k: t for k, t in saved.items() if not k.endswith("slim_router")}),
        "4 of 48 tensors .* missing",
    ),
    "fewer experts than it says": ("fits this base", config(num_experts=2), r"must be \[4, 32\]"),
    "a LoRA's weights": ("fits this base", renamed("slim_A", "lora_A.weight"), "4 of 48 tensors .* are missing"),
    "counts in int8": (
        "fits this base",
        tensor(KEY + "slim_count", retype(torch.int8)),
        "dtype I8; it must be BF16 or F16 or F32 or I64",
    ),
    "clusters in int64": (
        "fits this base",
        tensor(KEY + "slim_center", retype(torch.int64)),
        "dtype I64; it must be BF16 or F16 or F32",
    ),
    "masks in int64": (
        "fits this base",
        tensor(KEY + "slim_rows", retype(torch.int64)),
        "dtype I64; it must be BF16 or BOOL or F16 or F32",
    ),
    "NaN in a router": ("weights finite", tensor(KEY + "slim_router", fill(float("nan"))), "that are not finite"),
    "far centre": (
        "weights finite",
        tensor(KEY + "slim_center", fill(3e38)),
        r"holds the number 3e\+38; no statistic may be beyond ±1,000,000,000,000,000",
    ),
    "infinite centre": ("weights finite", tensor(KEY + "slim_center", fill(float("inf"))), "that are not finite"),
    "negative variance": (
        "weights finite",
        tensor(KEY + "slim_var", fill(-1.0)),
        "holds a negative number; variances",
    ),
    "negative count": ("weights finite", tensor(KEY + "slim_count", fill(-1)), "holds a negative number"),
    "NaN reference": ("weights finite", tensor(KEY + "slim_reference", fill(float("nan"))), "that are not finite"),
}
