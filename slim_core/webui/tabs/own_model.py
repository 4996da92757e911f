# SPDX-License-Identifier: Apache-2.0
"""The card with commands to copy, for comparing one's own model."""

from __future__ import annotations

from typing import Any


BASE = "Qwen/Qwen3-0.6B"
COMMANDS = (
    (
        "Train LoRA and SLIM on the same data",
        f"python -m slim_core train --base {BASE} --data my.jsonl --method lora --method slim --output both",
    ),
    ("Check an adapter, yours or somebody else’s", f"python -m slim_core adapter check both/slim --base {BASE}"),
    (
        "Open this page on them",
        f"python -m slim_core serve --base {BASE} --lora both/lora --slim both/slim",
    ),
)
NOTE = (
    "From the root of this repository. A base is a folder, or a name on the Hub, which needs a network; each line of "
    "my.jsonl has a question and an answer. Without a network, train on the demo’s base and data: --base "
    "assets/demo/base --data examples/capitals.jsonl"
)


def card() -> dict[str, Any]:
    """What the browser draws."""
    return {"note": NOTE, "commands": [{"title": title, "command": command} for title, command in COMMANDS]}
