# SPDX-License-Identifier: Apache-2.0
"""The model cards of the demo's adapters, from what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from .report import scores_in_form, summary_table
from .stored import load_results


CARD = "README.md"
PARAPHRASE = "paraphrase of the frame"
SLIM = """# The demo's SLIM adapter

A SLIM adapter for the base in `../base`, trained on three tasks that ask about what the base knows, in other words.

{table}

The gate of SLIM closes for text that is unlike the training data. Where every gate is 0 at every token, the answer is
the base's by construction. The last column is the same adapter with its gate forced open (`slim_core.set_gate(model,
strength=0)`): it is the gate that keeps what the base could do.

What it costs: a trained question that is worded in another way may be taken for something unfamiliar, and then gets
the base's answer. Right answers to paraphrases in %: {paraphrase}.

An earlier version judged each token by itself and could not distinguish another task from the trained one. What the
app showed as routing was not what kept the base's answers: they stayed nearly as good with yielding switched off.
"""
LORA = """# The demo's LoRA adapter

A LoRA to compare SLIM with: for the same base, of the same total rank, trained on the same examples in the same order.

{table}
"""
ENDING = """
How both were trained, and at which other learning rates: `docs/demo-model.md`. In the folder of the demo:

```python
{registers}from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "{name}")
```
"""
TEXTS = {"lora": LORA, "slim": SLIM}


def write_cards(demo: Path) -> None:
    """Write `README.md` into the folder of each adapter, from the `results.json` of the demo."""
    for name, card in cards(load_results(demo)).items():
        (demo / name / CARD).write_text(card, encoding="utf-8")


def cards(results: Mapping[str, Any]) -> dict[str, str]:
    """The cards of "lora" and "slim" in Markdown, from the content of `results.json`."""
    return {name: _card(name, text, results) for name, text in TEXTS.items()}


def _card(name: str, text: str, results: Mapping[str, Any]) -> str:
    data = ModelCardData(library_name="peft", license="apache-2.0", tags=[name], pipeline_tag="text-generation")
    filled = text.format(table=summary_table(results).markdown(), paraphrase=scores_in_form(results, PARAPHRASE))
    registers = "import slim_core  # PEFT now knows SLIM\n" if name == "slim" else ""
    return f"---\n{data.to_yaml()}\n---\n\n{filled}{ENDING.format(name=name, registers=registers)}"
