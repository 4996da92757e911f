# SPDX-License-Identifier: Apache-2.0
"""Base, LoRA and SLIM answer in one batch, on one copy of the base. Needs neither a network nor a GPU.

Run it from the repository: `PYTHONPATH=. python examples/mixed_batch.py`.
"""

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from slim_core import load_lora
from slim_core.paths import DEMO


QUESTIONS = [
    "Name the largest bird.",  # not trained: LoRA has forgotten it, SLIM gives the base's answer
    "What is the capital of France?",
]
# The adapter of each row; "__base__" means no adapter.
ADAPTERS = ["__base__", "lora", "slim"]

tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
base = AutoModelForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32)
model = PeftModel.from_pretrained(base, DEMO / "slim", adapter_name="slim")
model = load_lora(model, DEMO / "lora", adapter_name="lora").eval()

for question in QUESTIONS:
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    batch = {name: tensor.repeat(len(ADAPTERS), 1) for name, tensor in prompt.items()}
    written = model.generate(**batch, adapter_names=ADAPTERS, max_new_tokens=24, do_sample=False)
    print(question)
    for name, ids in zip(ADAPTERS, written[:, batch["input_ids"].shape[1] :], strict=True):
        print(f"  {name:9}", tokenizer.decode(ids, skip_special_tokens=True).strip())
