# SPDX-License-Identifier: Apache-2.0
"""The model card of an adapter: metadata for the Hub at the top, text for people below.

Names in it are text. Backticks, brackets, HTML or `:train:` in the name of a file stand for nothing else.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from huggingface_hub import ModelCardData

from ..baselines import METHODS
from ..outside.errors import printable
from .report import CAPTION, RECORD, TrainingRecord, markdown_table


# Letters, digits, dots, hyphens, slashes and single spaces; `_` only within a word, where it does not mean emphasis.
PLAIN = re.compile(r"(?:[^\W_]|[./-]|(?<=[^\W_])_(?=[^\W_])|(?<=[^\W_]) (?=[^\W_]))+")
# GitHub makes a link of these by itself.
LINK = re.compile(r"www\.|://", re.IGNORECASE)


# What a user should know who finds that it answers like the base.
GATE = (
    "\nThe adapter has a gate: it closes for text that is unlike the training data, and where it is closed, the base "
    "answers as if there were no adapter. A question that is worded in another way than in training may be taken for "
    "such text. `slim_core.set_gate(model, strength=0)` opens the gate, which shows both what it keeps and what it "
    "costs.",
)


def has_gate(record: TrainingRecord) -> bool:
    """Whether a gate closes what was trained."""
    fields = record.arguments.get("slim") or {}
    return record.method == "slim" and fields.get("yield_mode", "gate") == "gate"


def write_model_card(folder: Path, record: TrainingRecord) -> None:
    """README.md of the adapter folder.

    Raises:
        OSError: if it cannot be written.
    """
    settings = record.arguments
    local = Path(settings["base"]).is_dir()
    base = (Path(settings["base"]).resolve().name if local else "") or settings["base"]
    data = ModelCardData(
        library_name="peft",
        base_model=None if local else base,
        tags=["slim"] if record.method == "slim" else [record.method, "slim"],
        pipeline_tag="text-generation",
    )
    sources = ", ".join(in_markdown(str(source["name"])) for source in record.data["sources"])
    method = METHODS[record.method]
    registers = f"import slim_core  # PEFT now knows {method.title}\n" if method.tuner is not None else ""
    lines = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {in_markdown(base)}, fine-tuned with {METHODS[record.method].title}\n",
        f"A PEFT adapter, trained on {sources} ({record.data['train']['examples']} examples, {record.steps} steps of "
        f"{settings['batch_size']}, learning rate {settings['learning_rate']:g}, seed {settings['seed']}).",
        "Training was interrupted: this is the state at that step.\n" if record.interrupted else "",
        f"{markdown_table([record])}\n\n{CAPTION}",
        *(GATE if has_gate(record) else ()),
        *_ending(record.answers_end_with),
        f"\nEverything else about the run is in `{RECORD}`.\n",
        f"```python\n{registers}from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n",
        f"base = AutoModelForCausalLM.from_pretrained({in_python(base)})",
        'model = PeftModel.from_pretrained(base, "this-folder")',
        "```",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _ending(mark: str | None) -> list[str]:
    if mark is None:
        return []
    return [f"\nAnswers end with {in_markdown(mark)}: stop them there, since the base has no token that ends them."]


def in_markdown(name: str) -> str:
    """A name as text of Markdown: unchanged if it has no special meaning, else as code."""
    text = printable(name)
    if PLAIN.fullmatch(text) and not LINK.search(text):
        return text
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    # Markdown removes one space on each side again. It keeps backticks of the name apart from the fence.
    space = " " if text.startswith(("`", " ")) or text.endswith(("`", " ")) else ""
    return f"{fence}{space}{text}{space}{fence}"


def in_python(name: str) -> str:
    """A name as a string of Python, on one line."""
    return json.dumps(name, ensure_ascii=not name.isprintable())
