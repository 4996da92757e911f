# SPDX-License-Identifier: Apache-2.0
"""The facts of the world as tables, and the relations that ask about them."""

from ..relations import Relation
from . import geography, language, nature, objects, people, quantities, social


RELATIONS: tuple[Relation, ...] = (
    *geography.RELATIONS,
    *quantities.RELATIONS,
    *nature.RELATIONS,
    *objects.RELATIONS,
    *people.RELATIONS,
    *language.RELATIONS,
    *social.RELATIONS,
)
BY_NAME = {relation.name: relation for relation in RELATIONS}

__all__ = ["BY_NAME", "RELATIONS"]
