# SPDX-License-Identifier: Apache-2.0
"""Is one client alone as fast as with another version of the project?

Both versions run at the same time, each in a process of its own, and answer the same questions in turn: the base
alone, and base, LoRA and SLIM in one batch, on the demo that each of them ships. The script prints answers per second,
and the median over the rounds of the ratio within each round. With the last version that answered one client after
another:

    git worktree add ../before ff31ce4
    python -m tests.experiments.one_client --before ../before
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


HERE = Path(__file__).parents[2]
QUESTIONS = ["What is the capital of Peru?", "What is 7 + 8?", "Who are you?", "Can a penguin fly?"]
# What a version's process runs: for each line with the names of variants it answers all questions, and prints how
# long that took and how many tokens each answer has.
WORKER = """
import sys, time
from slim_core.blas import one_thread_for_numpy
one_thread_for_numpy()
from slim_core.inference import Message, Row, Sampling, load_engine
demo = "assets/demo/"
engine = load_engine(demo + "base", lora=demo + "lora", slim=demo + "slim")
engine.end_tokens = frozenset()
questions, sampling = sys.argv[1:], Sampling(max_new_tokens=8)
print("ready", flush=True)
for line in sys.stdin:
    start, tokens = time.perf_counter(), set()
    for question in questions:
        for step in engine.answer([Row(name, (Message("user", question),)) for name in line.split()], sampling):
            pass
        tokens |= {row.tokens for row in step.rows}
    print(time.perf_counter() - start, *tokens, flush=True)
"""
# Versions before this module had nothing to set.
WORKER_OLD = WORKER.replace("from slim_core.blas import one_thread_for_numpy\none_thread_for_numpy()\n", "")
WAYS = {"base alone": "base", "base, LoRA and SLIM": "base lora slim"}


class Version(NamedTuple):
    """A version of the project, and its running process."""

    folder: Path
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, folder: Path) -> Version:
        code = WORKER if (folder / "slim_core" / "blas.py").is_file() else WORKER_OLD
        environment = os.environ | {"PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, *QUESTIONS],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        version = cls(folder, process)
        version.said()
        return version

    def said(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.folder} ended with {self.process.wait()}; its message is above.")
        return line

    def answers_per_second(self, names: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(names + "\n")
        self.process.stdin.flush()
        seconds, *tokens = self.said().split()
        if tokens != ["8"]:
            raise SystemExit(f"{self.folder} gave answers of {tokens} tokens instead of 8.")
        return len(QUESTIONS) / float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="folder of the other version")
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args()
    versions = {"before": Version.start(args.before.resolve()), "now": Version.start(HERE)}
    print(
        "| one client, answers of 8 tokens | before, per second | now | now / before |\n| --- | ---: | ---: | ---: |"
    )
    for way, names in WAYS.items():
        rounds = []
        for number in range(args.rounds + 2):
            found = {name: version.answers_per_second(names) for name, version in versions.items()}
            if number >= 2:  # the first two are warm-ups
                rounds.append(found)
        before, now = (statistics.median(found[name] for found in rounds) for name in versions)
        ratio = statistics.median(found["now"] / found["before"] for found in rounds)
        print(f"| {way} | {before:.1f} | {now:.1f} | {ratio:.2f} |", flush=True)
    for version in versions.values():
        version.process.kill()


if __name__ == "__main__":
    main()
