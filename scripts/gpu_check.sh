#!/usr/bin/env bash
# What only a machine with a GPU can show, in less than ten minutes: the tests that need CUDA, the benches, and a short
# training. Run it in an environment with `pip install -r tests/requirements.txt`, while nothing else uses the GPU.
#
#   scripts/gpu_check.sh [--cpu] [--only STEP]... [FOLDER]
#
# FOLDER is a new one, gpu-check by default. It gets check.json with all numbers, check.md with the tables, and the
# output of each step. With --cpu everything is small and the tests are skipped: that tries the script, not the GPU, and
# may take three times as long.
set -uo pipefail

whole_seconds=590
patience=1
python=${PYTHON:-python}
device=cuda
only=()
steps=" tests bench-decode bench-layer bench-experts bench-compare bench-train bench-load train train-4bit bench-memory bench-memory-4bit "
out=gpu-check
while [ $# -gt 0 ]; do
    case $1 in
        --cpu) device=cpu patience=3 ;;
        --only) only+=("${2:?--only needs the name of a step}"); shift ;;
        -*) echo "There is no option $1; there are --cpu and --only STEP." >&2; exit 2 ;;
        *) out=$1 ;;
    esac
    shift
done
for name in "${only[@]}"; do
    if [[ $steps != *" $name "* ]]; then
        echo "There is no step $name; the steps are:${steps% }." >&2
        exit 2
    fi
done
if [ -e "$out" ]; then
    echo "$out exists already: name a new folder." >&2
    exit 1
fi
if ! mkdir -p "$out"; then
    exit 1
fi
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || exit 1
if [ "$device" = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    rmdir "$out"
    echo "torch finds no CUDA GPU on this machine. To try the script without one, add --cpu." >&2
    exit 1
fi

# step NAME SECONDS COMMAND...: run it for at most so long, and note how it ended.
step() {
    local name=$1 limit=$((patience * $2)) begin=$SECONDS code=0 left=$((patience * whole_seconds - SECONDS))
    shift 2
    if [ ${#only[@]} -gt 0 ] && [[ " ${only[*]} " != *" $name "* ]]; then
        return
    fi
    echo "$name ..."
    if [ "$left" -lt 5 ]; then
        code=no-time
    else
        timeout "$((left < limit ? left : limit))" "$@" >"$out/$name.log" 2>&1 || code=$?
    fi
    printf '%s\t%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - begin))" "$*" >>"$out/steps.tsv"
}

bench() {
    local name=$1 limit=$2
    shift 2
    step "bench-$name" "$limit" "$python" -m slim_core bench "$@" --device "$device" --json "$out/bench-$name.json"
}

train() {
    local name=$1
    shift
    step "$name" 60 "$python" -m slim_core train --base assets/demo/base --data "$out/data.jsonl" \
        --output "$out/$name" --max-steps 10 --batch-size 8 --gradient-checkpointing "$@"
}

if [ "$device" = cuda ]; then
    # In bfloat16, with room for the adapters.
    large=$("$python" -c 'import torch
gigabytes = torch.cuda.get_device_properties(0).total_memory / 1e9
print("8B" if gigabytes > 45 else "3B" if gigabytes > 22 else "1B")')
    middle=1B
    four_bit=$([ "$large" = 1B ] && echo 3B || echo 8B)
    width=4096
    length=256
    prompt=512
    tokens=32
    questions=64
    rounds=3
else
    large=tiny
    middle=tiny
    four_bit=tiny
    width=64
    length=16
    prompt=32
    tokens=4
    questions=16
    rounds=1
fi
for number in $(seq 40); do
    printf '{"prompt": "What is %d + 8?", "completion": "%d"}\n' "$number" "$((number + 8))"
done >"$out/data.jsonl"

# To collect the tests in all files would take a minute.
mapfile -t marked < <(grep -rlE 'needs_cuda|every_device' tests --include='test_*.py')
step tests 200 "$python" -m pytest -q -m gpu -p no:cacheprovider --junitxml "$out/tests.xml" "${marked[@]}"
bench decode 150 decode --shape "$large" --prompt "$prompt" --tokens "$tokens" --rounds "$rounds"
bench layer 60 layer --width "$width" --tokens 1 --tokens "$prompt" --rounds "$rounds"
bench experts 60 decode --shape "$middle" --prompt 64 --tokens "$((tokens / 2))" --experts 8 --experts 64 --rounds "$rounds"
bench compare 60 compare --shape "$large" --rank 16 --tokens "$tokens" --rounds "$rounds"
bench train 60 train --shape "$middle" --length "$length" --rounds "$rounds"
bench load 60 load --shape "$middle" --clients 1 --clients 16 --clients 64 --questions "$questions" --rounds 1
train train
train train-4bit --four-bit
bench memory 90 memory --shape "$middle"
bench memory-4bit 120 memory --shape "$four_bit" --load-4bit

if ! "$python" scripts/gpu_report.py "$out" "$device"; then
    exit 1
fi
# Whoever calls it learns whether a step failed.
! grep -qvP '^[^\t]+\t0\t' "$out/steps.tsv"
