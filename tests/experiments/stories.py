# SPDX-License-Identifier: Apache-2.0
"""Does SLIM forget less than LoRA? A real small model, real data, a plain training loop.

A 260k-parameter Llama that was trained on children's stories is fine-tuned on grade-school maths problems (GSM8K). The
script prints the loss on held-out problems (what was learned) and on stories (what was kept), for LoRA and SLIM of the
same total rank, on the same batches, at each learning rate. Who learns less also forgets less: compare where the task
loss is the same. Nothing is chosen by these numbers; all rows are printed.

    python -m tests.experiments.stories --data FOLDER --steps 300 --lr 1e-4 3e-4 1e-3 3e-3

FOLDER holds `lm-stories260K/hf`, `gsm8k/{train,test}.jsonl` and `tinystories/mini_gpt_tinystories.txt`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from slim_core import SlimConfig, extra_losses, trace_routing


TOKENS = 192
BATCH = 16
EXPERTS, RANK = 8, 4


def chunks(tokenizer, texts: list[str], limit: int) -> Tensor:
    """(n, TOKENS) token ids of the texts, one after the other, each with its begin and end token."""
    ids: list[int] = []
    for text in texts:
        ids += [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        if len(ids) >= limit * TOKENS:
            break
    count = min(limit, len(ids) // TOKENS)
    return torch.tensor(ids[: count * TOKENS]).view(count, TOKENS)


def openings(tokenizer, text: str) -> Tensor:
    """(n, TOKENS) token ids: each story from its beginning, as the base model was trained to read it."""
    begins = "Once upon a time"
    rows = [
        [tokenizer.bos_token_id, *tokenizer((begins + story).strip(), add_special_tokens=False).input_ids][:TOKENS]
        for story in text.split(begins)[1:]
    ]
    return torch.tensor([row for row in rows if len(row) == TOKENS])


def problems(path: Path) -> list[str]:
    records = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [f"Question: {r['question']}\nAnswer: {r['answer']}" for r in records]


@torch.no_grad()
def loss_of(model: nn.Module, ids: Tensor) -> float:
    """Mean next-token loss in nats."""
    model.eval()
    losses = [model(input_ids=part, labels=part).loss for part in ids.split(BATCH)]
    return torch.stack(losses).mean().item()


@torch.no_grad()
def routing_of(model: nn.Module, ids: Tensor) -> tuple[float, float]:
    """Mean identity share and mean distance over all layers and tokens."""
    model.eval()
    with trace_routing(model) as trace:
        model(input_ids=ids[:BATCH])
    rows = [trace.row(r) for r in trace.rows]
    return (
        torch.stack([r.identity.mean() for r in rows]).mean().item(),
        torch.stack([r.distance.mean() for r in rows]).mean().item(),
    )


def train(model: nn.Module, ids: Tensor, steps: int, lr: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=lr, weight_decay=0.0)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / warmup) * max(0.0, 1 - s / steps)
    )
    model.train()
    for _ in range(steps):
        batch = ids[torch.randint(len(ids), (BATCH,), generator=generator)]
        loss = model(input_ids=batch, labels=batch).loss + sum(extra_losses(model).values())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the model and the data")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slim", type=json.loads, nargs="+", default=[{}], help="changes to SlimConfig, as JSON")
    parser.add_argument("--no-lora", action="store_true", help="train the SLIM variants only")
    args = parser.parse_args()

    folder = args.data / "lm-stories260K" / "hf"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task = chunks(tokenizer, problems(args.data / "gsm8k" / "train.jsonl"), 6000)
    held_out = chunks(tokenizer, problems(args.data / "gsm8k" / "test.jsonl"), 192)
    text = (args.data / "tinystories" / "mini_gpt_tinystories.txt").read_text(encoding="utf-8")
    stories = openings(tokenizer, text)

    base = AutoModelForCausalLM.from_pretrained(folder)
    print(f"{len(task)} training, {len(held_out)} test and {len(stories)} story pieces of {TOKENS} tokens")
    columns = ("weights", "lr", "task", "stories", "id task", "id story", "d task", "d story", "s")
    print(f"{'method':<44}" + "".join(f"{c:>9}" for c in columns))
    print(f"{'base':<44}{'':>18}{loss_of(base, held_out):>9.3f}{loss_of(base, stories):>9.3f}", flush=True)
    lora = LoraConfig(r=EXPERTS * RANK, lora_alpha=2 * EXPERTS * RANK, target_modules="all-linear")
    configs = {} if args.no_lora else {"lora": lora}
    for changes in args.slim:
        config = SlimConfig(**({"r": RANK, "num_experts": EXPERTS, "alpha": 2 * RANK} | changes))
        configs["slim " + json.dumps(changes).replace('"', "")] = config
    for lr in args.lr:
        for name, config in configs.items():
            torch.manual_seed(args.seed)
            model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
            start = time.perf_counter()
            train(model, task, args.steps, lr, args.seed)
            seconds = time.perf_counter() - start
            weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
            line = f"{name:<44}{weights:>9}{lr:>9.0e}{loss_of(model, held_out):>9.3f}{loss_of(model, stories):>9.3f}"
            if isinstance(config, SlimConfig):
                near, far = routing_of(model, held_out), routing_of(model, stories)
                line += f"{near[0]:>9.2f}{far[0]:>9.2f}{near[1]:>9.2f}{far[1]:>9.2f}"
            else:
                line += " " * 36
            print(f"{line}{seconds:>9.0f}", flush=True)


if __name__ == "__main__":
    main()
