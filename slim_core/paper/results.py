# SPDX-License-Identifier: Apache-2.0
"""The result file of an experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from ..evaluation.results import as_data
from ..evaluation.statistics import mean_score
from ..evaluation.summary import BASE, Group
from .collect import Collected, Part, columns_by_rate, key_of, kinds_of, values_of
from .published import SOURCE
from .runs import Contender
from .tables import notes, tables
from .work import WorkFolder


FORMAT, VERSION = "slim-paper", 2


def result_file(collected: Collected, work: WorkFolder) -> dict[str, Any]:
    """The content of the result file: what is shown, without single answers, which are in the work folder.

    It has no times, so that a resumed run gives the same file.
    """
    columns = {key_of(cell): column for part in collected.parts for column, cell in part.columns.items()}
    return {
        "format": FORMAT,
        "version": VERSION,
        "experiment": collected.experiment.name,
        "title": collected.experiment.title,
        "scale": work.scale.name,
        "difference_to_the_paper": f"{SOURCE} {work.scale.sentence}",
        "rows": [_row(contender, collected, columns) for contender in collected.experiment.contenders],
        "missing": [cell.words for cell in collected.missing],
        "parts": {part.name: _summary(part) for part in collected.parts},
        "plane": [point for part in collected.parts for point in _points(part, collected.experiment.contenders)],
        "tables": [asdict(table) | {"bold": sorted(table.bold)} for table in tables(collected)],
        "notes": notes(collected),
    }


def _summary(part: Part) -> dict[str, Any]:
    return {key: value for key, value in as_data(part.evaluation).items() if key != "samples"}


def _points(part: Part, contenders: Sequence[Contender]) -> Iterator[dict[str, Any]]:
    """What was learned and kept by the base and by each contender at each rate, as shares with 95 % intervals over
    items.
    """
    for group in part.evaluation.groups:
        base = {"name": BASE, "title": BASE, "part": part.name, "rate": None, "chosen": True}
        yield base | {kind: _mean(part, group, kind, [BASE]) for kind in kinds_of(group)}
        for contender in contenders:
            for rate, columns in columns_by_rate(part.columns, contender).items():
                point = {"name": contender.name, "title": contender.title, "part": part.name, "rate": rate}
                point |= {"chosen": part.chosen.get(contender.name, rate) == rate}
                yield point | {kind: _mean(part, group, kind, columns) for kind in kinds_of(group)}


def _mean(part: Part, group: Group, kind: str, columns: Sequence[str]) -> dict[str, Any]:
    marks = values_of(part, group, kind, columns)
    by_seed = [values_of(part, group, kind, [column]) for column in columns]
    return {
        **mean_score(marks, list(marks))._asdict(),
        "seeds": [fmean(fmean(values) for values in by_task.values()) for by_task in by_seed],
    }


def _row(contender: Contender, collected: Collected, columns: Mapping[str, str]) -> dict[str, Any]:
    keys = [key for key in collected.files if key.startswith(f"{contender.name} at ")]
    return {
        "name": contender.name,
        "title": contender.title,
        "method": contender.setup.method,
        "changes": dict(contender.setup.changes),
        "strength": contender.strength,
        "trained_on": contender.data,
        "paper": dict(contender.paper),
        "cells": [_cell(key, columns.get(key), collected) for key in keys],
    }


def _cell(key: str, column: str | None, collected: Collected) -> dict[str, Any]:
    entry: dict[str, Any] = {"cell": key, "column": column, "adapter": collected.files[key].folder.name}
    training = collected.trainings.get(key, {})
    return entry | {name: training[name] for name in ("steps", "parameters", "validation_loss") if name in training}
