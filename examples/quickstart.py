# SPDX-License-Identifier: Apache-2.0
"""Train a SLIM adapter for a few steps, save it, and load it again. Needs neither a network nor a GPU.

Run it from the repository: `PYTHONPATH=. python examples/quickstart.py`.
"""

import json
import tempfile
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from slim_core import SlimConfig, turn_opening
from slim_core.paths import DEMO


BASE = DEMO / "base"
DATA = Path(__file__).with_name("capitals.jsonl")
STEPS = 20

tokenizer = AutoTokenizer.from_pretrained(BASE)
examples = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]


def encode(prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """Token ids and labels of one conversation; the loss is on the answer only."""
    question = {"role": "user", "content": prompt}
    answer = {"role": "assistant", "content": completion}
    prompt_ids = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_dict=False)
    ids = tokenizer.apply_chat_template([question, answer], return_dict=False)
    return ids, [-100] * len(prompt_ids) + ids[len(prompt_ids) :]


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


rows, labels = zip(*(encode(**example) for example in examples), strict=True)
batch = {
    "input_ids": padded(rows, tokenizer.pad_token_id),
    "attention_mask": padded([[1] * len(row) for row in rows], 0),
    "labels": padded(labels, -100),
}

torch.manual_seed(0)
base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
config = SlimConfig(
    task_type="CAUSAL_LM",
    r=8,
    target_modules=["gate_proj", "up_proj"],
    turn_opening=turn_opening(tokenizer),  # each turn of a conversation is judged by itself
)
model = get_peft_model(base, config)

model.train()  # the clusters of the training data slide in training mode only
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
for step in range(STEPS):
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step in (0, STEPS - 1):
        print(f"step {step + 1}: loss {loss.item():.3f}")

with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    print("saved", *sorted(path.name for path in Path(folder).iterdir()))
    fresh = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(fresh, folder).eval()

with torch.no_grad():
    same = torch.equal(model.eval()(**batch).logits, loaded(**batch).logits)
print("the loaded adapter gives the same numbers:", same)
