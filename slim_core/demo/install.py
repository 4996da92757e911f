# SPDX-License-Identifier: Apache-2.0
"""An adapter as it ships: two files, rounded weights, and no path of the machine on which it was trained."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..method import SlimLayer
from .verify import WEIGHTS


def install_adapter(source: Path, target: Path) -> None:
    """Copy an adapter's two files, with weights in bfloat16 and the base's path relative to the repository."""
    target.mkdir(parents=True)
    name = Path(WEIGHTS["lora"]).name
    tensors = {
        # Trained weights tolerate rounding. Statistics, counts and masks are not trained and stay as they are.
        key: tensor.to(torch.bfloat16) if is_trained(key, tensor) else tensor
        for key, tensor in load_file(source / name).items()
    }
    save_file(tensors, target / name, {"format": "pt"})
    config = json.loads((source / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "assets/demo/base"
    (target / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def is_trained(key: str, tensor: Tensor) -> bool:
    """Whether this tensor of an adapter's file is a weight, not a statistic, count or mask of SLIM."""
    return tensor.is_floating_point() and not key.endswith(SlimLayer.statistic_names)
