# SPDX-License-Identifier: Apache-2.0
"""How often the gate in front of a LoRA server gives SLIM's own answer, on the demo's tasks.

`python -m tests.experiments.gate_agreement --questions 60` prints two tables: by task, at the command's threshold, and
over all tasks at several thresholds. Behind the gate is the static export, frozen over questions and answers that SLIM
was trained on, or the demo's LoRA, trained on the same data. Answers are greedy.

With `--proxy http://127.0.0.1:7861/v1`, a gate proxy that is running is asked instead. It counts the answers that are
SLIM's, and those that are the engine's for the model that answered, base or LoRA. `--lora DIR` is the LoRA behind the
proxy, the demo's by default. `--export DIR` only writes the static export there.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import openai
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from slim_core import export_lora
from slim_core.demo.downstream import DOWNSTREAM_TASKS
from slim_core.demo.example import Example
from slim_core.demo.measure import LONGEST_ANSWER, TASKS, mark, questions
from slim_core.inference import Engine, Message, Row, Sampling, load_engine
from slim_core.paths import DEMO
from slim_core.serving.gate import Gate


CALIBRATION, AT_ONCE = 64, 16
VARIANTS = ("base", "export", "lora", "slim")
BEHIND = ("export", "lora")
HEAD = " | ".join(
    (
        "to the base",
        *(f"SLIM's answer: gate + {lora}" for lora in BEHIND),
        *(f"right: {variant}" for variant in VARIANTS),
        *(f"right: gate + {lora}" for lora in BEHIND),
    )
)
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Asked:
    """One question: its answers by variant, and the share past LoRA of its prompt."""

    example: Example
    texts: dict[str, str]
    identity: float

    def chosen(self, threshold: float, lora: str) -> str:
        """What the proxy would answer."""
        return self.texts["base" if self.identity >= threshold else lora]

    def right(self, text: str) -> bool:
        """Whether an answer is right."""
        return mark([self.example], [text.strip()]) == "1"


def export(folder: Path) -> Path:
    """The static export of the demo's SLIM."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(DEMO / "base"), DEMO / "slim")
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    batches = []
    for task in DOWNSTREAM_TASKS:
        chats = [
            [{"role": "user", "content": e.prompt}, {"role": "assistant", "content": e.answer}]
            for e in questions(task, "train", CALIBRATION)
        ]
        encoded = tokenizer.apply_chat_template(chats, return_tensors="pt", return_dict=True, padding=True)
        batches.append({name: encoded[name] for name in ("input_ids", "attention_mask")})
    report = export_lora(model, "default", batches, folder)
    print(
        f"export: mean KL {report.mean_kl:.4f} nats over {report.tokens} tokens, same top token {report.same_top1:.1%}"
    )
    return folder


def ask(engine: Engine, gate: Gate, examples: Sequence[Example]) -> list[Asked]:
    """All answers to some questions, several questions in one batch."""
    answered = []
    for start in range(0, len(examples), AT_ONCE):
        some = examples[start : start + AT_ONCE]
        rows = [Row(variant, (Message("user", e.prompt),)) for e in some for variant in VARIANTS]
        *_, step = engine.answer(rows, Sampling(max_new_tokens=LONGEST_ANSWER))
        texts = iter(row.text for row in step.rows)
        for example in some:
            judged = gate.judge({"messages": [{"role": "user", "content": example.prompt}]})
            answers = {variant: next(texts) for variant in VARIANTS}
            answered.append(Asked(example, answers, judged.verdict.identity))
    return answered


def line(name: str, asked: Sequence[Asked], threshold: float) -> str:
    """A row of a table, in percent."""

    def share(hits) -> str:
        return f"{100 * sum(hits) / len(asked):.0f}"

    cells = [share(a.identity >= threshold for a in asked)]
    cells += [share(a.chosen(threshold, lora) == a.texts["slim"] for a in asked) for lora in BEHIND]
    cells += [share(a.right(a.texts[variant]) for a in asked) for variant in VARIANTS]
    cells += [share(a.right(a.chosen(threshold, lora)) for a in asked) for lora in BEHIND]
    return f"| {name} | {' | '.join(cells)} |"


def ask_proxy(url: str, lora: Path, count: int) -> None:
    """Print how many of a running proxy's answers are those of the engine."""
    engine = load_engine(DEMO / "base", lora=lora, slim=DEMO / "slim")
    create = openai.OpenAI(base_url=url, api_key="-").chat.completions.create
    asked = as_chosen = as_slim = to_base = 0
    for example in (example for task in TASKS for example in questions(task, "test", count)):
        message = {"role": "user", "content": example.prompt}
        answer = create(model="slim", messages=[message], temperature=0, max_tokens=LONGEST_ANSWER)
        base = answer.model == "base"
        rows = [Row(variant, (Message("user", example.prompt),)) for variant in ("base" if base else "lora", "slim")]
        *_, step = engine.answer(rows, Sampling(max_new_tokens=LONGEST_ANSWER))
        chosen, slim = ((answer.choices[0].message.content or "").strip() == row.text.strip() for row in step.rows)
        asked, as_chosen, as_slim, to_base = asked + 1, as_chosen + chosen, as_slim + slim, to_base + base
    print(f"{asked} questions, {to_base} to the base; the engine's answer {as_chosen}, SLIM's {as_slim}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=60, help="of each task")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--proxy", help="the API of a gate proxy that is running")
    parser.add_argument("--lora", type=Path, default=DEMO / "lora", help="with --proxy")
    parser.add_argument("--export", type=Path, help="where to write the static export")
    arguments = parser.parse_args()
    if arguments.export:
        export(arguments.export)
        return
    if arguments.proxy:
        ask_proxy(arguments.proxy, arguments.lora, arguments.questions)
        return
    with tempfile.TemporaryDirectory() as folder:
        engine = load_engine(DEMO / "base", lora=DEMO / "lora", slim=DEMO / "slim")
        engine.attach(export(Path(folder)), name="export")
    gate = Gate(engine, "slim", arguments.threshold, "base", "export")
    print(f"| task | {HEAD} |")
    everything = []
    for task in TASKS:
        asked = ask(engine, gate, questions(task, "test", arguments.questions))
        everything += asked
        print(line(task, asked, arguments.threshold), flush=True)
    print(line("all", everything, arguments.threshold))
    print(f"| threshold | {HEAD} |")
    for threshold in THRESHOLDS:
        print(line(f"{threshold:g}", everything, threshold))


if __name__ == "__main__":
    main()
