# SPDX-License-Identifier: Apache-2.0
"""Does SLIM forget less than LoRA? A real small model that was not made here, real data, a plain training loop.

A Llama of 260 thousand parameters that was trained on children's stories is fine-tuned on BoolQ, ARC-Easy and
OpenBookQA in the instruction form of LLM-Adapters, the loss on the answers alone. For each method and peak rate the
script prints the task's loss on held-out questions, KL(base || adapted) in nats per token on text of four other kinds,
and the share of tokens that went past LoRA; then, in Markdown, means over the seeds with the least and the most, and,
with `--layers`, the shares by block. A gate is measured at other strengths too, without training again. LoRA and SLIM
have the same total rank and see the same batches. Nothing is chosen by these numbers; all rows are printed.

    python -m tests.experiments.real_model --data FOLDER --lr 3e-4 1e-3 3e-3 --seeds 0 1 2

FOLDER holds `lm-stories260K/hf`, `llm-adapters`, `openbookqa`, `tinystories`, `general-text`, `gsm8k` and `piqa`.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from slim_core import SlimConfig, extra_losses, set_gate, trace_routing


TOKENS = 256
BATCH = 16
EXPERTS, RANK = 8, 8
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CHOICES = "Please choose the correct answer to the question: {} {}\n\nAnswer format: {}"
# What is trained on reads like this, as LLM-Adapters writes it.
PROMPT = "### Instruction:\n{}\n\n### Response:\n"


class Texts(NamedTuple):
    """Token ids (n, T) padded on the right, and which of them count (n, T) bool."""

    ids: Tensor
    counted: Tensor


def instructions(folder: Path, split: str) -> Iterator[tuple[str, str]]:
    """Instruction and answer of every question of a split, "train" or "test"."""
    for task in ("boolq", "ARC-Easy"):
        for record in json.loads((folder / "llm-adapters" / task / f"{split}.json").read_text(encoding="utf-8")):
            yield record["instruction"], record["output"]
    with (folder / "openbookqa" / f"{split}.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            options = re.split(r"\s*\([A-D]\)\s*", row["Choices"])[1:]
            labels = [f"answer{i + 1}" for i in range(len(options))]
            listed = " ".join(f"Answer{i + 1}: {option}" for i, option in enumerate(options))
            right = labels["ABCD".index(row["Answer Key"].strip())]
            yield CHOICES.format(row["Question Stem"], listed, "/".join(labels)), f"the correct answer is {right}"


def encode_task(tokenizer, pairs: list[tuple[str, str]]) -> Texts:
    """Prompt and answer; the answers count. What is longer than `TOKENS` is left out."""
    rows, starts = [], []
    for instruction, answer in pairs:
        prompt = [tokenizer.bos_token_id, *tokenizer(PROMPT.format(instruction), add_special_tokens=False).input_ids]
        whole = [*prompt, *tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        if len(whole) <= TOKENS:
            rows.append(whole)
            starts.append(len(prompt))
    texts = padded(rows)
    texts.counted[torch.arange(TOKENS).expand(len(rows), -1) < torch.tensor(starts).unsqueeze(1)] = False
    return texts


def padded(rows: list[list[int]]) -> Texts:
    ids, counted = torch.zeros(len(rows), TOKENS, dtype=torch.long), torch.zeros(len(rows), TOKENS, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        counted[i, : len(row)] = True
    return Texts(ids, counted)


def encode_texts(tokenizer, texts: list[str]) -> Texts:
    return padded(
        [[tokenizer.bos_token_id, *tokenizer(t, add_special_tokens=False).input_ids][:TOKENS] for t in texts]
    )


def other_texts(folder: Path, count: int) -> dict[str, list[str]]:
    """The base's own domain, and three that are neither its nor the task's."""
    begins = "Once upon a time"
    stories = (folder / "tinystories" / "mini_gpt_tinystories.txt").read_text(encoding="utf-8").split(begins)[1:]
    wiki = (folder / "general-text" / "llamafactory_wiki_demo.txt").read_text(encoding="utf-8")
    articles = [wiki[i : i + 1000] for i in range(0, len(wiki), 1000)]
    gsm8k = [json.loads(line) for line in (folder / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    piqa = [json.loads(line) for line in (folder / "piqa" / "valid.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "stories": [(begins + story).strip() for story in stories[:count]],
        "wiki": articles[:count],
        "gsm8k": [f"{record['question']}\n{record['answer']}" for record in gsm8k[:count]],
        "piqa": [f"{record['goal']} {record['sol1']}" for record in piqa[:count]],
    }


def trimmed(texts: Texts, part: slice | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and what counts of some rows, without the columns that are padding in all."""
    ids, counted = texts.ids[part], texts.counted[part]
    length = int((ids != 0).sum(1).max())
    return ids[:, :length], (ids[:, :length] != 0).long(), counted[:, :length]


def losses(logits: Tensor, ids: Tensor, counted: Tensor) -> Tensor:
    """Loss of each token that counts, in nats."""
    return nn.functional.cross_entropy(
        logits[:, :-1][counted[:, 1:]].float(), ids[:, 1:][counted[:, 1:]], reduction="none"
    )


def train(model: PeftModel, task: Texts, steps: int, lr: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=lr, weight_decay=0.0)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / warmup) * max(0.0, 1 - s / steps)
    )
    model.train()
    for _ in range(steps):
        ids, mask, counted = trimmed(task, torch.randint(len(task.ids), (BATCH,), generator=generator))
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = losses(logits, ids, counted).mean() + sum(extra_losses(model).values())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


@torch.no_grad()
def loss_of(model: nn.Module, texts: Texts) -> float:
    by_batch = []
    for begin in range(0, len(texts.ids), BATCH):
        ids, mask, counted = trimmed(texts, slice(begin, begin + BATCH))
        by_batch.append(losses(model(input_ids=ids, attention_mask=mask).logits, ids, counted))
    return torch.cat(by_batch).mean().item()


@torch.no_grad()
def kl_of(model: PeftModel, texts: Texts) -> float:
    """Mean KL(base || adapted) over the tokens, in nats."""
    by_batch = []
    for begin in range(0, len(texts.ids), BATCH):
        ids, mask, counted = trimmed(texts, slice(begin, begin + BATCH))
        adapted = model(input_ids=ids, attention_mask=mask).logits[counted].log_softmax(-1)
        with model.disable_adapter():
            base = model(input_ids=ids, attention_mask=mask).logits[counted].log_softmax(-1)
        by_batch.append((base.exp() * (base - adapted)).sum(-1))
    return torch.cat(by_batch).mean().item()


@torch.no_grad()
def identity_of(model: PeftModel, texts: Texts) -> dict[int, float]:
    """Mean share of tokens past LoRA by block."""
    ids, mask, _ = trimmed(texts, slice(0, 2 * BATCH))
    with trace_routing(model) as trace:
        model(input_ids=ids, attention_mask=mask)
    rows = [trace.row(row) for row in trace.rows]
    linears = torch.cat([row.identity for row in rows], dim=1).mean(1).tolist()
    blocks: dict[int, list[float]] = {}
    for module, share in zip(rows[0].modules, linears, strict=True):
        blocks.setdefault(int(re.search(r"layers\.(\d+)\.", module)[1]), []).append(share)
    return {block: statistics.fmean(shares) for block, shares in sorted(blocks.items())}


class Row(NamedTuple):
    """What was measured of one adapter, at one strength of its gate.

    Attributes:
        loss: of the task's held-out answers, in nats.
        drift: KL(base || adapted) in nats per token, by kind of text.
        shares: of tokens past LoRA, by kind of text and block; none of a LoRA.
    """

    loss: float
    drift: dict[str, float]
    shares: dict[str, dict[int, float]]


def measured(model: PeftModel, task: Texts, others: dict[str, Texts], routed: bool) -> Row:
    return Row(
        loss_of(model, task),
        {kind: kl_of(model, texts) for kind, texts in others.items()},
        {kind: identity_of(model, texts) for kind, texts in ({"task": task} | others).items()} if routed else {},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the model and the data")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--texts", type=int, default=96, help="texts of each other kind")
    parser.add_argument("--slim", type=json.loads, nargs="+", help="changes to SlimConfig, as JSON")
    parser.add_argument(
        "--strengths", type=float, nargs="*", default=[2.0, 0.0], help="of a gate, measured beside its own; 0 opens it"
    )
    parser.add_argument("--no-lora", action="store_true", help="train the SLIM variants only")
    parser.add_argument("--layers", action="store_true", help="print the shares past LoRA by block too")
    args = parser.parse_args()

    folder = args.data / "lm-stories260K" / "hf"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task = encode_task(tokenizer, list(instructions(args.data, "train")))
    held_out = encode_task(tokenizer, list(instructions(args.data, "test"))[::8])
    others = {name: encode_texts(tokenizer, texts) for name, texts in other_texts(args.data, args.texts).items()}
    print(f"{len(task.ids)} training and {len(held_out.ids)} test questions; {args.texts} texts of each other kind")
    print(
        f"{'method':<58}{'rate':>7}{'seed':>6}{'task':>8}" + "".join(f"{'KL ' + name:>12}" for name in others), end=""
    )
    print(f"{'past LoRA: task':>17}" + "".join(f"{name:>9}" for name in others), flush=True)
    token = {"distance_scope": "token", "yield_mode": "calibrated", "yield_quantile": 0.95}
    configs = (
        {}
        if args.no_lora
        else {"LoRA": LoraConfig(r=EXPERTS * RANK, lora_alpha=2 * EXPERTS * RANK, target_modules=LINEARS)}
    )
    for changes in args.slim or [token, {"carry_up": False}, {}]:
        same = {"r": RANK, "num_experts": EXPERTS, "alpha": 2 * RANK, "num_clusters": 64, "target_modules": LINEARS}
        config = SlimConfig(**(same | changes))
        configs["SLIM " + json.dumps(changes).replace('"', "")] = config
    table: dict[tuple[float, str], list[Row]] = {}

    def add(name: str, lr: float, seed: int, routed: bool) -> None:
        row = measured(model, held_out, others, routed)
        table.setdefault((lr, name), []).append(row)
        line = f"{name:<58}{lr:>7.0e}{seed:>6}{row.loss:>8.4f}" + "".join(f"{kl:>12.3f}" for kl in row.drift.values())
        widths = (17, *(9 for _ in others))
        shares = [statistics.fmean(blocks.values()) for blocks in row.shares.values()]
        print(line + "".join(f"{share:>{width}.2f}" for share, width in zip(shares, widths, strict=False)), flush=True)

    for seed in args.seeds:
        for lr in args.lr:
            for name, config in configs.items():
                torch.manual_seed(seed)
                # A copy: `set_gate` below writes into the config of the model, and the next rate begins as trained.
                model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), copy.deepcopy(config))
                train(model, task, args.steps, lr, seed)
                add(name, lr, seed, isinstance(config, SlimConfig))
                if isinstance(config, SlimConfig) and config.yield_mode == "gate":
                    for strength in args.strengths:
                        set_gate(model, strength=strength)
                        add(f"{name}, strength {strength:g}", lr, seed, True)
    print_means(table, list(others))
    if args.layers:
        print_blocks(table)


def print_means(table: dict[tuple[float, str], list[Row]], kinds: list[str]) -> None:
    """Loss and drift over the seeds: the mean, the least and the most."""
    print(f"\n| rate | method | task loss | {' | '.join(f'KL {kind}' for kind in kinds)} |")
    print(f"| ---: | --- |{' ---: |' * (1 + len(kinds))}")
    for (lr, name), rows in table.items():
        cells = [spread([row.loss for row in rows], 4)]
        cells += [spread([row.drift[kind] for row in rows], 4) for kind in kinds]
        print(f"| {lr:g} | {name} | {' | '.join(cells)} |")


def print_blocks(table: dict[tuple[float, str], list[Row]]) -> None:
    """Shares of tokens past LoRA by block, in %: means over the seeds and the block's Linears."""
    for (lr, name), rows in table.items():
        if shares := rows[0].shares:
            print(f"\nPast LoRA by block in %, {name}, at {lr:g}:\n")
            print(f"| block | {' | '.join(shares)} |")
            print(f"| ---: |{' ---: |' * len(shares)}")
            for block in next(iter(shares.values())):
                cells = [f"{100 * statistics.fmean(row.shares[kind][block] for row in rows):.1f}" for kind in shares]
                print(f"| {block} | {' | '.join(cells)} |")


def spread(values: list[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f}–{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
