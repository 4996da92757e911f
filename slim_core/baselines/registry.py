# SPDX-License-Identifier: Apache-2.0
"""All methods. A new one needs a folder and a line here."""

from __future__ import annotations

from .disel import DISEL
from .entry import Method
from .experts import Experts
from .loramoe import LORAMOE
from .mixlora import MIXLORA, MIXLORA_DY
from .mola import MOLA
from .plain import DORA, LORA, LORA_INTRUDERS, LORA_MLP, LORA_REWOUND, OFT, SLIM


_ALL = (
    LORA,
    DORA,
    SLIM,
    LORA_MLP,
    LORA_REWOUND,
    LORA_INTRUDERS,
    OFT,
    LORAMOE,
    MIXLORA,
    MIXLORA_DY,
    MOLA,
    DISEL,
)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}
# By PEFT type, the kinds of adapters whose rows this package computes.
KINDS: dict[str, Method] = {}
for _method in _ALL:
    if _method.experts is not None:
        KINDS.setdefault(_method.peft_type, _method)


def experts_of(peft_type: object) -> type[Experts] | None:
    """The class that computes rows of a type of adapter; None if the type is not from this package."""
    method = KINDS.get(str(getattr(peft_type, "value", peft_type)))
    return None if method is None else method.experts
