# SPDX-License-Identifier: Apache-2.0
"""Answers of earlier evaluations that need not be given again."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..inference import ModelInfo
from ..outside.errors import printable, reason
from .errors import EvaluationError
from .results import FORMAT, VERSION, Participant, variant_data
from .solving import Sample
from .summary import BASE
from .tasks import Task


# What is not decisive for an answer.
UNIMPORTANT = frozenset({"name", "bytes"})
# Batches of other sizes round differently.
RELATIVE, ABSOLUTE = 0.01, 0.05
Answer = dict[str, Any]
Known = dict[str, list[tuple[Answer, Answer]]]


class Reuse:
    """The answers of earlier evaluations, as their result files hold them.

    An answer is taken over if it is by the same adapter (weights and configuration), at the same setting of its gate,
    to the same task, and if the base answers the items as it did then: it answers all of them again.

    Args:
        paths: result files of `evaluate`.

    Attributes:
        taken: how many answers were taken over.
        hashes: of the files' content, by the flag that names them and their number.

    Raises:
        EvaluationError: if one is not such a file.
    """

    def __init__(self, paths: Sequence[Path] = ()) -> None:
        self.taken = 0
        self.hashes: dict[str, str] = {}
        self._files: dict[str, dict[str, Any]] = {}
        for number, path in enumerate(paths):
            content = _read(path)
            self.hashes[f"--reuse {number}"] = hashlib.sha256(content).hexdigest()
            self._files[printable(str(path))] = _results(content, printable(str(path)))
        self._columns: dict[str, tuple[Any, ...]] = {}
        self._fingerprints: dict[str, str] = {}
        # By identity of an adapter and fingerprint of a task: its answers and the base's of the same file, by item.
        self._answers: dict[tuple[tuple[Any, ...], str], tuple[dict[int, Answer], dict[int, Answer]]] = {}

    def prepare(self, base: ModelInfo, participants: Sequence[Participant]) -> None:
        """Look for the answers of these.

        Args:
            base: the base that answers now.
            participants: who answers now, the base first.

        Raises:
            EvaluationError: if a file is of another base.
        """
        for name, content in self._files.items():
            try:
                self._take(name, content, _decisive(asdict(base)))
            except (KeyError, TypeError, AttributeError):
                raise EvaluationError(f"{name} is damaged; leave it out of --reuse.") from None
        for participant in participants[1:]:
            self._columns[participant.respondent.column] = _identity(variant_data(participant))

    def _take(self, name: str, content: Mapping[str, Any], base: Mapping[str, Any]) -> None:
        if _decisive(content["base"]) != base:
            differing = ", ".join(key for key, value in base.items() if content["base"].get(key) != value)
            raise EvaluationError(
                f"{name} is of another base: {differing} differ. Leave it out of --reuse, or name that base."
            )
        for task in content["tasks"]:
            samples = [sample for sample in content["samples"][task["name"]] if "answers" in sample]
            by_base = {sample["id"]: sample["answers"][BASE] for sample in samples}
            for variant in content["variants"][1:]:
                answers = {sample["id"]: sample["answers"][variant["name"]] for sample in samples}
                self._answers.setdefault((_identity(variant), task["sha256"]), (answers, by_base))

    def known(self, task: Task, ids: Sequence[int]) -> Known:
        """What was answered earlier.

        Args:
            task: whose items they are.
            ids: their places in it.

        Returns:
            For each column that answered all of them: its answers, and the base's at that time.
        """
        if not self._answers:
            return {}
        # Made once, since it reads all items.
        if task.name not in self._fingerprints:
            self._fingerprints[task.name] = task.fingerprint
        columns = {}
        for column, identity in self._columns.items():
            answers, by_base = self._answers.get((identity, self._fingerprints[task.name]), ({}, {}))
            if all(item in answers for item in ids):
                columns[column] = [(answers[item], by_base[item]) for item in ids]
        return columns

    def merged(self, samples: Sequence[Sample], known: Known, columns: Sequence[str]) -> list[Sample] | None:
        """Fresh samples with what is known already.

        Args:
            samples: of the base and of all columns that are not known.
            known: from `known`.
            columns: all of them, in order.

        Returns:
            The samples with all columns; None if the base answers differently now.
        """
        whole: list[Sample] = []
        for place, sample in enumerate(samples):
            earlier = {column: answers[place] for column, answers in known.items()}
            if not all(_same(sample.get("answers", {}).get(BASE), base) for _, base in earlier.values()):
                return None
            answers = sample["answers"] | {column: answer for column, (answer, _) in earlier.items()}
            whole.append(sample | {"answers": {column: answers[column] for column in columns}})
        self.taken += len(known) * len(samples)
        return whole


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        name = printable(str(path))
        raise EvaluationError(f"{name} cannot be read: {reason(error)}; name result files with --reuse.") from None


def _results(content: bytes, name: str) -> dict[str, Any]:
    try:
        results = json.loads(content)
    except ValueError:
        results = None
    if not isinstance(results, dict) or (results.get("format"), results.get("version")) != (FORMAT, VERSION):
        raise EvaluationError(f"{name} is not a result file of `evaluate`; name its .json files with --reuse.")
    return results


def _decisive(info: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in info.items() if key not in UNIMPORTANT}


def _identity(variant: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides about a variant's answers."""
    # Files without the hash of a configuration are from before it was written; their adapters are not known.
    names = ("sha256", "config_sha256", "ends_with", "strength_used", "quantile_used")
    return tuple(variant.get(name) for name in names)


def _same(now: Any, then: Any) -> bool:
    """Whether two answers are the same but for rounding."""
    if isinstance(now, float) and isinstance(then, float | int):
        return math.isclose(now, then, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    if isinstance(now, Mapping) and isinstance(then, Mapping):
        return now.keys() == then.keys() and all(_same(now[key], then[key]) for key in now)
    if isinstance(now, list) and isinstance(then, list):
        return len(now) == len(then) and all(map(_same, now, then))
    return bool(now == then)
