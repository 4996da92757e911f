#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train SLIM on the demo's base. Needs neither a network nor a GPU. The argument is a new folder for the adapter.
set -euo pipefail
output=$(realpath -m "${1:-my-slim}")
cd "$(dirname "$0")/.."
python -m slim_core train --base assets/demo/base --data examples/capitals.jsonl --output "$output" \
    --rank 8 --target gate_proj --target up_proj --learning-rate 3e-3 --epochs 10
