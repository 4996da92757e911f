# SPDX-License-Identifier: Apache-2.0
"""Results as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ..inference.types import Sampling
from .answers import PromptAnswer, PromptResult, Respondent


FORMAT, VERSION = "slim-prompts", 1
# A spreadsheet treats a cell that begins with one of these as a formula and may run it. The wide ones come from East
# Asian keyboards. Some spreadsheets skip blanks and invisible characters before them.
FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
BLANKS = ("\t", "\r", "\n")
OF_PROMPT = ("number", "place", "system", "prompt", "error")
# Of one answer: the column's name is put before each.
OF_ANSWER = ("label", "answer", "tokens", "finish_reason", "error")
OF_ADAPTER = ("identity", "verdict", "distance", "reference", "exact", "strength", "quantile", "log_ratio", "mean_kl")


def to_csv(results: Iterable[PromptResult], askers: Sequence[Respondent]) -> str:
    """CSV with one line per prompt, safe to open in a spreadsheet.

    A text that a spreadsheet would take for a formula gets an apostrophe before it, which spreadsheets take for "this
    is text" and do not show. `to_json` has the texts as they are.

    Args:
        results: in the order of the lines.
        askers: the respondents, in the order of the columns.

    Returns:
        With a byte order mark, without which Excel reads no UTF-8.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC)
    columns = [
        (a.column, name)
        for a in askers
        for name in (OF_ANSWER if a.variant.kind == "base" else (*OF_ANSWER, *OF_ADAPTER))
    ]
    writer.writerow(
        ["number", "place", "system", "prompt", "error", *(f"{column}_{name}" for column, name in columns)]
    )
    for result in results:
        answers = {answer.column: _cells(answer) for answer in result.answers}
        system = result.messages[0].content if result.messages[0].role == "system" else ""
        cells = [result.number, result.place, system, _asked(result), result.error or ""]
        cells += [answers.get(column, {}).get(name, "") for column, name in columns]
        writer.writerow([plain(cell) if isinstance(cell, str) else cell for cell in cells])
    return "\ufeff" + out.getvalue()


def plain(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    first = next((c for c in text if c.isprintable() and not c.isspace()), "")
    return f"'{text}" if first in FORMULA or text.startswith(BLANKS) else text


def _cells(answer: PromptAnswer) -> dict[str, Any]:
    verdict = answer.verdict
    cells = {
        "label": answer.label,
        "answer": answer.text,
        "tokens": answer.tokens,
        "finish_reason": answer.finish_reason,
        "error": answer.error,
        "identity": answer.identity,
        "verdict": None if verdict is None else verdict.kind,
        "distance": None if verdict is None else verdict.distance,
        "reference": None if verdict is None else verdict.reference,
        "exact": None if verdict is None else "yes" if verdict.exact else "no",
        "strength": answer.gate.strength,
        "quantile": answer.gate.quantile,
        "log_ratio": answer.log_ratio,
        "mean_kl": answer.mean_kl,
    }
    return {name: _cell(value) for name, value in cells.items()}


def _asked(result: PromptResult) -> str:
    """The prompt; a conversation with its earlier turns, each with its role."""
    messages = [message for message in result.messages if message.role != "system"]
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in messages)


def _cell(value: Any) -> Any:
    value = _finite(value)
    return "" if value is None else round(value, 6) if isinstance(value, float) else value


def to_json(
    results: Sequence[PromptResult], prompts: int, base: str, askers: Sequence[Respondent], sampling: Sampling
) -> str:
    """Everything that is known about the results, as JSON.

    Args:
        results: what was answered.
        prompts: how many were to be.
        base: the base model's name.
        askers: the respondents.
        sampling: how tokens were chosen.
    """
    table = {
        "format": FORMAT,
        "version": VERSION,
        "base": base,
        "prompts": prompts,
        "sampling": asdict(sampling),
        "variants": [_asker(asker) for asker in askers],
        "results": [_result(result) for result in results],
    }
    return json.dumps(table, ensure_ascii=False, indent=2)


def _asker(asker: Respondent) -> dict[str, Any]:
    gate = {"gate_strength": asker.gate.strength, "gate_quantile": asker.gate.quantile}
    return asdict(asker.variant) | {"name": asker.column} | gate


def _result(result: PromptResult) -> dict[str, Any]:
    return {
        "number": result.number,
        "place": result.place,
        "messages": [message._asdict() for message in result.messages],
        "error": result.error,
        "answers": {answer.column: _answer(answer) for answer in result.answers},
    }


def _answer(answer: PromptAnswer) -> dict[str, Any]:
    apart = ("column", "gate", "verdict")
    fields = {name: _finite(value) for name, value in asdict(answer).items() if name not in apart}
    verdict = answer.verdict
    return (
        fields
        | asdict(answer.gate)
        | {"verdict": None if verdict is None else {"kind": verdict.kind} | asdict(verdict)}
    )


def _finite(value: Any) -> Any:
    """JSON knows no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
