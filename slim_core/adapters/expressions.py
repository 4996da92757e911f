# SPDX-License-Identifier: Apache-2.0
"""Regular expressions in a config from outside: replaced by names and ranks taken from the file's tensors.

No expression is ever run: a short one can take hours. What it chose is written in the weights' file anyway.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any, NamedTuple

from ..method import SlimConfig
from ..outside.errors import AdapterError, quoted
from ..outside.files import WEIGHTS
from ..outside.header import Header
from ..outside.limits import Limits
from .fields import ALL_LINEAR, PLAIN_NAME, Raw, check_plain_names, refuse
from .layout import PREFIX


# PEFT adds `(.*\.)?` before and `$` after a pattern's key, so these add nothing.
FRONTS = (r"(.*\.)?", r"(?:.*\.)?", r"(^|.*\.)", r"(?:^|.*\.)")
BELOW = r".*\."
ENDS = ("$", r"\Z")
ESCAPED = re.compile(r"\\([._-])")


class _Literal(NamedTuple):
    """The plain name in a key that is written as a regular expression."""

    name: str
    exact: bool
    below: bool


def without_expressions(raw: Raw, header: Header, limits: Limits) -> Raw:
    """A copy of a config that names its modules one by one wherever it had an expression.

    Args:
        raw: the parsed config. Other kinds than LORA and SLIM, and values of a wrong type, stay as they are.
        header: of the adapter's file.
        limits: of names and patterns.

    Raises:
        AdapterError: if a key of `alpha_pattern` is an expression, which no tensor can answer, or if the tensors
            and the plain names contradict each other.
    """
    if raw.get("peft_type") not in ("LORA", "SLIM"):
        return raw
    raw = dict(raw)
    ranks = _ranks(raw, header)
    if _is_expression(raw.get("target_modules")) or _is_expression(raw.get("exclude_modules")):
        if not ranks:
            raise AdapterError(
                f"{WEIGHTS}: `target_modules` or `exclude_modules` is a regular expression, which is never run, and "
                "the tensors do not show which modules are adapted; save the adapter with PEFT's `save_pretrained`."
            )
        raw |= {"target_modules": _named_targets(raw, list(ranks), limits), "exclude_modules": None}
    if _has_expressions(raw.get("rank_pattern")):
        raw["rank_pattern"] = _rank_pattern(raw, ranks, limits)
    if _has_expressions(raw.get("alpha_pattern")):
        raw["alpha_pattern"] = _alpha_pattern(raw["alpha_pattern"], list(ranks))
    return raw


def _ranks(raw: Raw, header: Header) -> dict[str, int]:
    """Rank of each expert by module, from the shapes of the first factors."""
    ending, experts = ".lora_A.weight", 1
    if raw["peft_type"] == "SLIM":
        ending, experts = ".slim_A", raw.get("num_experts", SlimConfig.num_experts)
    if type(experts) is not int or experts < 1:
        return {}
    return {
        name.removeprefix(PREFIX).removesuffix(ending): info.shape[0] // experts
        for name, info in header.items()
        if name.startswith(PREFIX) and name.endswith(ending) and info.shape
    }


def _is_expression(value: Any) -> bool:
    """Whether PEFT would treat it as a regular expression: any string except its keyword for all Linears."""
    return isinstance(value, str) and value.strip() != "" and value.lower() != ALL_LINEAR


def _has_expressions(pattern: Any) -> bool:
    return isinstance(pattern, dict) and not all(PLAIN_NAME.match(key) for key in pattern)


def _named_targets(raw: Raw, modules: list[str], limits: Limits) -> list[str]:
    listed = raw.get("target_modules")
    if _is_expression(listed) and raw.get("layers_to_transform") not in (None, []):
        refuse("layers_to_transform", "needs `target_modules` as a list of names")
    odd = next((name for name in modules if len(name) > limits.name_length or not PLAIN_NAME.match(name)), None)
    if odd is not None:
        raise AdapterError(f"{WEIGHTS}: {quoted(odd, 160)} is not a module name; save it with `save_pretrained`.")
    if len(modules) > limits.names:
        raise AdapterError(
            f"{WEIGHTS} adapts {len(modules):,} modules by a regular expression, which is never run; at most "
            f"{limits.names:,} are named one by one, so list endings such as 'q_proj' in `target_modules`."
        )
    if isinstance(listed, list):
        check_plain_names(listed, "target_modules", limits)
        wrong = next((name for name in modules if not any(_ends(name, ending) for ending in listed)), None)
        if wrong is not None:
            raise AdapterError(
                f"{WEIGHTS}: it holds factors of {quoted(wrong, 160)}, which is not among the config's "
                "`target_modules`; the two files belong to different adapters."
            )
    return sorted(modules)


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _rank_pattern(raw: Raw, ranks: dict[str, int], limits: Limits) -> dict[str, int]:
    """Keyed by the last part of the name if all modules with that name have the same rank, else module by module."""
    groups: dict[str, set[int]] = defaultdict(set)
    for name, rank in ranks.items():
        groups[name.rpartition(".")[2]].add(rank)
    single = {
        name: rank
        for name, rank in sorted(ranks.items(), key=lambda item: -len(item[0]))
        if len(groups[name.rpartition(".")[2]]) > 1
    }
    uniform = {last: next(iter(distinct)) for last, distinct in groups.items() if len(distinct) == 1}
    ranks_by_name = single | uniform  # the longest first: of two that fit, the first counts
    if len(ranks_by_name) > limits.patterns:
        refuse(
            "rank_pattern",
            f"has regular expressions, which are never run, and the tensors have {len(ranks_by_name):,} ranks to be "
            f"named; at most {limits.patterns:,} are allowed",
        )
    # A wrong value is wrong for expressions and names alike.
    for key, value in raw["rank_pattern"].items():
        if type(value) is not int or not 1 <= value <= limits.rank:
            refuse(
                f"rank_pattern[{quoted(key)}]",
                f"is {quoted(value)}; it must be a whole number from 1 to {limits.rank}",
            )
    return ranks_by_name


def _alpha_pattern(pattern: dict[str, Any], modules: list[str]) -> dict[str, Any]:
    """The pattern with plain names as keys. Tensors do not show an alpha, so real regular expressions are refused."""
    alphas: dict[str, Any] = {}
    for key, value in pattern.items():
        literal = _literal(key)
        if literal is None or _means_more(literal, modules):
            refuse(
                "alpha_pattern",
                f"has the entry {quoted(key)}, a regular expression, which is never run, and the tensors do not show "
                "which modules it means; write it as plain names such as 'q_proj' or 'layers.0.mlp.up_proj'",
            )
        alphas.setdefault(literal.name, value)  # of two equal names, the first counts
    return alphas


def _literal(key: str) -> _Literal | None:
    """The plain name in a key, which may be escaped or anchored; None if the key is a real regular expression."""
    exact = key.startswith("^")
    key = key.removeprefix("^")
    front = next((front for front in (*FRONTS, BELOW) if key.startswith(front)), "")
    key = key.removeprefix(front)
    key = key.removesuffix(next((end for end in ENDS if key.endswith(end)), ""))
    name = ESCAPED.sub(r"\1", key)
    return _Literal(name, exact and not front, front == BELOW) if PLAIN_NAME.match(name) else None


def _means_more(literal: _Literal, modules: list[str]) -> bool:
    """Whether the plain name, which matches every module with that ending, would match other modules than the key
    did.
    """
    if literal.exact:
        return any(name.endswith(f".{literal.name}") for name in modules)
    return literal.below and literal.name in modules
