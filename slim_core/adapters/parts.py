# SPDX-License-Identifier: Apache-2.0
"""What an adapter has besides updates of Linears: its own head or embedding, or single rows of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from ..base.shapes import BaseShapes
from ..outside.errors import quoted
from .fields import refuse
from .kinds import RowConfig


# As PEFT names it below the module.
TOKENS = "token_adapter.trainable_tokens_delta"
MAGNITUDE = "lora_magnitude_vector"


def copied_modules(config: RowConfig, base: BaseShapes) -> tuple[str, ...]:
    """Full names of the modules that the adapter replaces, in the base's order. Names that the base lacks are ignored.

    Raises:
        AdapterError: for another module than the output head and the input embedding.
    """
    named = getattr(config, "modules_to_save", None) or ()
    for name in named:
        modules = (*base.linears, *base.others)
        if not any(_is(name, table) for table in base.tables) and any(_is(name, module) for module in modules):
            refuse(
                "modules_to_save",
                f"names {quoted(name)}, but an adapter can replace only {_tables(base)} of {quoted(base.name, 120)}; "
                "adapt other modules with `target_modules`",
            )
    return tuple(table for table in base.tables if any(_is(name, table) for name in named))


def own_rows(config: RowConfig, base: BaseShapes) -> dict[str, tuple[int, ...]]:
    """Token ids whose rows the adapter replaces, by the full name of the module.

    Where head and embedding share one weight, only the embedding is named: its rows apply to the head as well.

    Raises:
        AdapterError: if the base cannot have them.
    """
    field, tokens_of = "trainable_token_indices", getattr(config, "trainable_token_indices", None)
    if not tokens_of:
        return {}
    if not isinstance(tokens_of, dict):
        if base.embedding is None:
            refuse(field, f"is set, but {quoted(base.name, 120)} has no input embedding that is recognised")
        tokens_of = {base.embedding: tokens_of}
    tokens_by_table: dict[str, tuple[int, ...]] = {}
    for name, tokens in tokens_of.items():
        table = next((table for table in base.tables if _is(name, table)), None)
        if table is None:
            refuse(field, f"names {quoted(name)}; it can name {_tables(base)} of {quoted(base.name, 120)}")
        if table in base.biased:
            refuse(field, f"names `{table}`, which adds a bias that PEFT would drop; train without it")
        if max(tokens) >= base.tables[table][0]:
            refuse(field, f"names token {max(tokens)}, but {quoted(base.name, 120)} knows {base.tables[table][0]:,}")
        tokens_by_table[table] = tuple(tokens)
    if base.tied and len(tokens_by_table) == 2:
        if len({*tokens_by_table.values()}) > 1:
            refuse(
                field, "names other tokens for the head than for the embedding, but both share one weight in this base"
            )
        del tokens_by_table[cast(str, base.head)]  # a tied base has one
    replaced = next((table for table in copied_modules(config, base) if table in tokens_by_table), None)
    if replaced is not None:
        refuse(field, f"names `{replaced}`, which `modules_to_save` replaces entirely; remove it from one of them")
    return tokens_by_table


def check_no_overlap(config: RowConfig, targets: Iterable[str], base: BaseShapes) -> None:
    """Raises AdapterError if a module is adapted and also has rows replaced by the adapter.

    Of a module that is brought in whole PEFT itself leaves the adapter out.
    """
    name = next((target for target in own_rows(config, base) if target in targets), None)
    if name is not None:
        refuse("trainable_token_indices", f"names `{name}`, which `target_modules` adapts; remove it from one of them")


def _is(name: str, module: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _tables(base: BaseShapes) -> str:
    return (
        " and ".join(f"`{table}`" for table in base.tables)
        or "the head and the embedding (not recognised in this base)"
    )
