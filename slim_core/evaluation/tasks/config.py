# SPDX-License-Identifier: Apache-2.0
"""Task files of lm-evaluation-harness: their data part only. Entries that would run code are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...outside.errors import first_line, reason
from ..errors import EvaluationError


# The entries of a task file and their types.
KNOWN: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "task_alias": (str,),
    "tag": (str, list),
    "include": (str,),
    "dataset_path": (str,),
    "dataset_name": (str,),
    "dataset_kwargs": (dict,),
    "training_split": (str,),
    "validation_split": (str,),
    "test_split": (str,),
    "fewshot_split": (str,),
    "fewshot_config": (dict,),
    "num_fewshot": (int,),
    "output_type": (str,),
    "doc_to_text": (str,),
    "doc_to_target": (str, int, list),
    "doc_to_choice": (str, list, dict),
    "description": (str,),
    "target_delimiter": (str,),
    "fewshot_delimiter": (str,),
    "generation_kwargs": (dict,),
    "metric_list": (list,),
    "filter_list": (list,),
    "repeats": (int,),
    "should_decontaminate": (bool,),
    "doc_to_decontamination_query": (str,),
    "metadata": (dict,),
}
NEEDED = ("dataset_path", "doc_to_text", "doc_to_target")
# These entries name functions in the file.
CODE = {
    "process_docs": "write it as jinja templates in doc_to_text, doc_to_target and doc_to_choice",
    "process_results": "name acc, acc_norm or exact_match in metric_list",
    "custom_dataset": "name a file or a data set in dataset_path",
    "class": "write the task as data",
    "unsafe_code": "leave it out",
    "use_prompt": "write the prompt in doc_to_text",
}
OUTPUT_TYPES = ("multiple_choice", "generate_until")
METRICS = {"multiple_choice": ("acc", "acc_norm"), "generate_until": ("exact_match",)}


class _Loader(yaml.SafeLoader):
    """A YAML loader for plain values only."""


def _refuse_function(loader: _Loader, suffix: str, node: yaml.Node) -> None:
    value = getattr(node, "value", "")
    raise EvaluationError(
        f"line {node.start_mark.line + 1}: `!function {value}` runs code from the file, which is never done here; "
        "write it as a jinja template"
    )


_Loader.add_multi_constructor("!function", _refuse_function)


def read_config(path: Path) -> dict[str, Any]:
    """Read a task file, with includes from its own folder.

    Raises:
        EvaluationError: if it cannot be read, has an unknown entry, or would run code.
    """
    config = _read(path, path.name, 0)
    if "group" in config:
        raise EvaluationError(
            f"{path.name}: `group` is not read; leave it out, or name the tasks of a group one by one."
        )
    for key, value in config.items():
        _check(key, value, path.name)
    missing = [key for key in NEEDED if config.get(key) is None]
    if missing:
        raise EvaluationError(f"{path.name} has no `{missing[0]}`; a task needs {', '.join(NEEDED)}.")
    _check_values(config, path.name)
    return {key: value for key, value in config.items() if value is not None}


def _read(path: Path, name: str, depth: int) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        cause = reason(error) if isinstance(error, OSError) else "it is not UTF-8"
        raise EvaluationError(f"The task file {name} cannot be read: {cause}; name a readable one.") from None
    try:
        config = yaml.load(text, _Loader)
    except EvaluationError as error:
        raise EvaluationError(f"{name}, {error}.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or first_line(error)
        raise EvaluationError(f"{name}{line}: this is not YAML with plain values only ({problem}).") from None
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise EvaluationError(f"{name} must hold `key: value` lines such as `task: my_task`.")
    if (included := config.pop("include", None)) is not None:
        if not isinstance(included, str) or Path(included).name != included or depth >= 4:
            raise EvaluationError(f"{name}: `include` must name a file in the same folder, not {included!r}.")
        return _read(path.parent / included, included, depth + 1) | config
    return config


def _check(key: str, value: Any, name: str) -> None:
    if key in CODE:
        raise EvaluationError(f"{name}: `{key}` runs code, which is never done here; {CODE[key]}.")
    if key not in KNOWN:
        raise EvaluationError(f"{name}: `{key}` is unknown; a task file may have {', '.join(KNOWN)}.")
    wrong = isinstance(value, bool) and bool not in KNOWN[key]
    if value is not None and (wrong or not isinstance(value, KNOWN[key])):
        kinds = " or ".join(kind.__name__ for kind in KNOWN[key])
        raise EvaluationError(f"{name}: `{key}` must be of type {kinds}, not {type(value).__name__}.")


def _check_values(config: Mapping[str, Any], name: str) -> None:
    output = config.get("output_type") or "generate_until"
    if output not in OUTPUT_TYPES:
        raise EvaluationError(f"{name}: `output_type` is {output!r}; it must be {' or '.join(OUTPUT_TYPES)}.")
    if output == "multiple_choice" and config.get("doc_to_choice") is None:
        raise EvaluationError(f"{name} has no `doc_to_choice`, which names the options of a multiple_choice task.")
    for metric in config.get("metric_list") or []:
        metric_name = metric.get("metric") if isinstance(metric, dict) else None
        if metric_name not in METRICS[output]:
            raise EvaluationError(
                f"{name}: the metric {metric_name!r} is unknown; {output} has {' and '.join(METRICS[output])}."
            )
    sampler = (config.get("fewshot_config") or {}).get("sampler", "first_n")
    if sampler not in ("first_n", "default"):
        raise EvaluationError(f"{name}: the sampler {sampler!r} is unknown; it must be first_n.")
    generation = config.get("generation_kwargs") or {}
    if generation.get("do_sample") or generation.get("temperature"):
        raise EvaluationError(f"{name}: answers are greedy here; set do_sample to false and leave temperature out.")
    if (config.get("repeats") or 1) != 1:
        raise EvaluationError(f"{name}: answers are greedy here, so `repeats` must be 1.")
    if (config.get("num_fewshot") or 0) < 0:
        raise EvaluationError(f"{name}: `num_fewshot` must be 0 or more.")
    if "trust_remote_code" in (config.get("dataset_kwargs") or {}):
        raise EvaluationError(f"{name}: `trust_remote_code` runs code, which is never done here; leave it out.")
