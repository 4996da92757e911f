# SPDX-License-Identifier: Apache-2.0
"""Templates of task files: jinja in a sandbox, with the same meaning as in lm-evaluation-harness."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...outside.errors import first_line, quoted
from ..errors import EvaluationError


Document = Mapping[str, Any]


def _regex_replace(text: str, pattern: str, by: str, count: int = 0) -> str:
    return re.sub(pattern, by, text, count=count)


# A template may read a record and compute with it. It cannot reach attributes that begin with _, nor change anything.
_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
_ENVIRONMENT.filters["regex_replace"] = _regex_replace


@lru_cache(maxsize=256)
def _compiled(source: str) -> Template:
    return _ENVIRONMENT.from_string(source)


def render(source: str, document: Document, place: str) -> str:
    """A template with the columns of a record in it.

    Args:
        source: the template.
        document: the record.
        place: to name it with.

    Raises:
        EvaluationError: if the template is invalid, is refused by the sandbox, or needs what the record does not have.
    """
    try:
        return _compiled(source).render(**document)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, re.error) as error:
        raise EvaluationError(f"{place}: the template {quoted(source)} fails: {first_line(error)}.") from None


def text_or_number(source: str, document: Document, place: str, has_choices: bool) -> Any:
    """`doc_to_text`, or a `doc_to_target`: a column's value, a text, or the number of an option.

    Args:
        source: a column's name, or a template.
        document: the record.
        place: to name it with.
        has_choices: whether the task has options, so that digits are the number of one.
    """
    if source in document:
        return document[source]
    text = render(source, document, place)
    return int(text) if has_choices and text.isdecimal() else text


def target(source: Any, document: Document, place: str, has_choices: bool) -> Any:
    """`doc_to_target`: a text, the number of an option, or a list of either."""
    if not isinstance(source, str):
        return source
    value = text_or_number(source, document, place, has_choices)
    if isinstance(value, str) and source not in document and value[:1] == "[" and value[-1:] == "]":
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return value


def choices(source: Any, document: Document, place: str) -> list[str]:
    """`doc_to_choice`: the texts of the options.

    Raises:
        EvaluationError: if they are not a list of texts.
    """
    if isinstance(source, str):
        if source in document:
            options = document[source]
        else:
            text = render(source, document, place)
            try:
                options = ast.literal_eval(text)  # a Python list literal, which runs no code
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                raise EvaluationError(
                    f"{place}: `doc_to_choice` must give a list such as {{{{choices.text}}}}, not {quoted(text)}."
                ) from None
    else:
        options = list(source.values()) if isinstance(source, Mapping) else source
    if (
        not isinstance(options, list | tuple)
        or len(options) < 2
        or not all(isinstance(option, str) for option in options)
    ):
        raise EvaluationError(f"{place}: `doc_to_choice` must give at least two texts, not {quoted(options)}.")
    return list(options)
