# SPDX-License-Identifier: Apache-2.0
"""Options with several values: `--adapters a b c` is `--adapters a --adapters b --adapters c`."""

from __future__ import annotations

from typing import ClassVar

from typer.core import TyperCommand


class SpreadCommand(TyperCommand):
    """A command without positional arguments, so that words after an option can only be its values."""

    spread: ClassVar[frozenset[str]] = frozenset()

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        """Repeat the option before each further value."""
        words: list[str] = []
        option, values = None, 0
        for word in args:
            if word.startswith("-") and word != "-":
                option, values = (word, 0) if word in self.spread else (None, 0)
            elif option is not None:
                values += 1
                if values > 1:
                    words.append(option)
            words.append(word)
        return super().parse_args(ctx, words)
