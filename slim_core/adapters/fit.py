# SPDX-License-Identifier: Apache-2.0
"""Whether an adapter fits a base: its Linears exist, and its file holds exactly the tensors that they need.

PEFT loads what fits and warns of the rest, so an adapter of another base may load as one that does nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import cast

from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

from ..base.shapes import BaseShapes
from ..baselines import KINDS, experts_of, gated_mlps
from ..method import difference, fingerprint_of_shapes
from ..outside.errors import AdapterError, quoted
from ..outside.files import WEIGHTS
from ..outside.header import Header
from .fields import ALL_LINEAR, refuse
from .kinds import RowConfig
from .layout import PREFIX, TensorLayout, expected_layout
from .parts import check_no_overlap


# With which the names of adapters' own tensors begin.
PREFIXES = ("lora_", "slim_", *(method.experts.prefix for method in KINDS.values() if method.experts))


def check_fit(config: RowConfig, header: Header, base: BaseShapes) -> tuple[str, ...]:
    """Check an adapter against a base.

    Args:
        config: a config rebuilt by `read_config`.
        header: of its file.
        base: what it has to fit.

    Returns:
        The names of the Linears that it adapts, in the base's order.

    Raises:
        AdapterError: if it does not fit.
    """
    config = with_default_targets(config, base)
    targets = adapted_linears(config, base)
    _check_fingerprint(config, targets, base)
    check_no_overlap(config, targets, base)
    layout = expected_layout(config, targets, base)
    _check_prefix(header, layout)
    _check_missing(header, layout, base)
    _check_extra(header, layout, base)
    for name, info in header.items():
        if info.shape != layout[name].shape:
            raise AdapterError(
                f"{WEIGHTS}: {quoted(name, 160)} has the shape {list(info.shape)}, but on {quoted(base.name, 120)} it "
                f"must be {list(layout[name].shape)}; the adapter was made for another base or rank."
            )
    check_dtypes(header, layout)
    return targets


def with_default_targets(config: RowConfig, base: BaseShapes) -> RowConfig:
    """A copy that names its Linears: without `target_modules`, a LoRA gets PEFT's default for this model family.

    Raises:
        AdapterError: if PEFT has no such default for this base.
    """
    config = copy.deepcopy(config)
    if config.target_modules is None:
        defaults = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(base.family or "")
        if defaults is None:
            refuse(
                "target_modules",
                f"is not set and has no default for {quoted(base.name, 120)}; list names such as 'q_proj'",
            )
        config.target_modules = set(defaults)  # as PEFT itself keeps a list
    return config


def adapted_linears(config: RowConfig, base: BaseShapes) -> tuple[str, ...]:
    """Names of the Linears, and of whole MLPs, that a config adapts, found by PEFT's own rule for names.

    Raises:
        AdapterError: if no name is anywhere in the base, one is of something other than a Linear, or none is left.
    """
    if config.target_modules == ALL_LINEAR:
        return tuple(name for name in base.linears if name != base.head and is_target(config, name))
    named = cast("set[str]", config.target_modules)  # nothing else passes `read_config` and `with_default_targets`
    absent = _absent(named, base)
    if len(absent) == len(named):
        refuse("target_modules", f"names {_listed(absent)}, and {_not_there(base)}")
    experts = experts_of(config.peft_type)
    whole = gated_mlps(base.linears) if experts is not None and "mlp" in experts.kinds else {}
    wrong = next((name for name in sorted(base.others - whole.keys()) if is_target(config, name)), None)
    if wrong is not None:
        target_kind = "Linear or gated MLP" if experts is not None and "mlp" in experts.kinds else "Linear"
        refuse("target_modules", f"names `{wrong}`, which is not a {target_kind}; only {target_kind}s can be adapted")
    targets = tuple(name for name in (*whole, *base.linears) if is_target(config, name))
    inside = next((n for n in targets if any(n.startswith(f"{mlp}.") for mlp in whole if mlp in targets)), None)
    if inside is not None:
        refuse("target_modules", f"names `{inside}` and the MLP that it is a part of; leave one of them out")
    if not targets:
        refuse(
            "target_modules",
            f"together with the other fields leaves no Linear of {quoted(base.name, 120)} to adapt",
        )
    return targets


def is_target(config: RowConfig, name: str) -> bool:
    """Whether a config with named targets adapts a module of that name, given that it is a Linear other than the
    head.
    """
    if config.target_modules == ALL_LINEAR:
        return not _excluded(config, name)
    return bool(check_target_module_exists(config, name))


def _excluded(config: RowConfig, name: str) -> bool:
    return any(
        name == excluded or name.endswith(f".{excluded}")
        for excluded in getattr(config, "exclude_modules", None) or ()
    )


def ignored_names(config: RowConfig, base: BaseShapes) -> tuple[str, ...]:
    """A sentence for each field that names modules the base does not have. They have no effect, as in PEFT."""
    fields = ("target_modules", "modules_to_save", "rank_pattern", "alpha_pattern")
    return tuple(
        f"`{field}` names {names}, which was ignored: {cause}."
        for field, names, cause in absent_names(config, base, fields)
    )


def absent_names(config: PeftConfig, base: BaseShapes, fields: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Names that match no module of the base.

    Args:
        config: of an adapter.
        base: what it is for.
        fields: of the config, in which to look.

    Yields:
        The field, the names and what the base has instead, the last two as parts of a sentence.
    """
    for field in fields:
        named = getattr(config, field, None)
        absent = _absent(named, base) if named and not isinstance(named, str) else []
        if absent:
            yield field, _listed(absent), _not_there(base)


def _absent(named: Iterable[str], base: BaseShapes) -> list[str]:
    """Names that match no module of the base, in full or as an ending."""
    # Every ending of every name, so that each target needs one look-up.
    endings = set()
    for module in (*base.linears, *base.others):
        parts = module.split(".")
        endings |= {".".join(parts[i:]) for i in range(len(parts))}
    return sorted(name for name in named if name not in endings)


def _listed(names: list[str]) -> str:
    return ", ".join(quoted(name) for name in names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _not_there(base: BaseShapes) -> str:
    known = sorted({module.rpartition(".")[2] for module in base.linears})
    listed = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
    return f"{quoted(base.name, 120)} has no such module; its Linears are {listed}"


def _check_fingerprint(config: RowConfig, targets: tuple[str, ...], base: BaseShapes) -> None:
    saved = getattr(config, "base_fingerprint", None)
    wrong = None if saved is None else difference(saved, fingerprint_of_shapes(targets, base.linears))
    if wrong is not None:
        raise AdapterError(f"The adapter was made for another base: {quoted(wrong, 300)[1:-1]}")


def _check_prefix(header: Header, layout: TensorLayout) -> None:
    """One message if all keys are named differently, before single missing keys are reported."""
    if header.keys() & layout.keys():
        return
    raise AdapterError(
        f"{WEIGHTS}: no tensor has an expected name: the first is {quoted(next(iter(header)), 160)}, but names look "
        f"like {quoted(next(iter(layout)), 160)}; save the adapter with PEFT's `save_pretrained`."
    )


def _check_missing(header: Header, layout: TensorLayout, base: BaseShapes) -> None:
    missing = [name for name in layout if name not in header]
    if missing:
        raise AdapterError(
            f"{WEIGHTS}: {len(missing):,} of {len(layout):,} tensors that {quoted(base.name, 120)} needs are missing, "
            f"the first {quoted(missing[0], 160)}; the file is incomplete or the adapter was made for another base."
        )


def _check_extra(header: Header, layout: TensorLayout, base: BaseShapes) -> None:
    extra = [name for name in header if name not in layout]
    if not extra:
        return
    copied = [
        name for name in extra if name.startswith(PREFIX) and not any(f".{prefix}" in name for prefix in PREFIXES)
    ]
    if copied:
        raise AdapterError(
            f"{WEIGHTS}: {quoted(copied[0], 160)} is a weight of the base itself, not of the adapter; save it with "
            "`save_pretrained(…, save_embedding_layers=False)`."
        )
    raise AdapterError(
        f"{WEIGHTS}: {len(extra):,} tensors do not belong to {quoted(base.name, 120)}, the first is "
        f"{quoted(extra[0], 160)}; the adapter was made for another base or contains more than its config declares."
    )


def check_dtypes(header: Header, layout: TensorLayout) -> None:
    """Raises AdapterError for a tensor whose dtype is not allowed there."""
    for name, info in header.items():
        if info.dtype not in layout[name].dtypes:
            allowed = " or ".join(sorted(layout[name].dtypes))
            raise AdapterError(f"{WEIGHTS}: {quoted(name, 160)} has the dtype {info.dtype}; it must be {allowed}.")
