# SPDX-License-Identifier: Apache-2.0
"""What the demo's base is trained on, and how."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A part of the training with its own mixture of data.

    Attributes:
        steps: optimiser steps.
        weights: shares of the tasks in the examples.
        fall: how many of the steps, at the end, let the rates fall to nothing. Then the next phase warms up again.
        turns: shares of conversations of one turn, of two, and so on.
        follow_ups: how often a turn that is not the first asks a fact of another entry: "And of Spain?"
        prompt_share: share of the questions' tokens, drawn at random, that are predicted too. Questions teach which
            words go together; each of their tokens would cost as much as one of an answer, and there are more.
    """

    steps: int
    weights: dict[str, int]
    fall: int = 0
    turns: tuple[int, ...] = (1,)
    follow_ups: float = 0.0
    prompt_share: float = 0.2


# Choosing and calculating need the most examples. Options with other labels and wordings come once the base has begun
# to choose; answers by letter alone come once it chooses well.
PHASES = (
    Phase(
        1400,
        {"sums": 22, "facts": 15, "spelled_choices": 34, "read_options": 6, "yes_no": 10, "talk": 7, "stories": 6},
    ),
    Phase(
        4400,
        {
            "sums": 24,
            "facts": 8,
            "spelled_choices": 24,
            "styled_choices": 6,
            "framed_choices": 12,
            "read_options": 3,
            "yes_no": 12,
            "talk": 6,
            "stories": 5,
        },
        fall=2900,
    ),
    Phase(
        2400,
        {
            "sums": 15,
            "facts": 7,
            "choices": 15,
            "framed_choices": 3,
            "scene_choices": 5,
            "told_choices": 28,
            "told_claims": 4,
            "told_questions": 13,
            "yes_no": 6,
            "talk": 3,
            "stories": 1,
        },
        fall=2400,
    ),
)


@dataclass(frozen=True)
class Training:
    """How weights are trained, wherever they start.

    Attributes:
        phases: what is trained, one after the other.
        batch: conversations of a step.
        rate: peak rate of Muon, for the matrices of the blocks.
        embedding_rate: peak rate of AdamW, for embeddings and norms.
        weight_decay: Muon's.
        warmup: steps until the peak, at the beginning and wherever the rates have fallen.
        seed: of the first weights and the data.
    """

    phases: tuple[Phase, ...] = PHASES
    batch: int = 128
    rate: float = 3e-3
    embedding_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup: int = 60
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return sum(phase.steps for phase in self.phases)


@dataclass(frozen=True)
class Recipe(Training):
    """How the base is built and taught single questions.

    Attributes:
        width, layers, heads, inner: of the Llama.
        context: most tokens of a conversation.
    """

    width: int = 192
    layers: int = 4
    heads: int = 6
    inner: int = 512
    context: int = 512


@dataclass(frozen=True)
class Conversations(Training):
    """How the base then learns conversations of several turns.

    It continues from the rounded weights, first with the mixture of the last question phase, so that nothing is lost,
    then with answers only and more of the general tasks.
    """

    phases: tuple[Phase, ...] = (
        Phase(600, PHASES[-1].weights, fall=540, turns=(5, 4, 3, 2, 1, 1), follow_ups=0.12),
        Phase(
            700,
            {
                "sums": 15,
                "facts": 12,
                "choices": 20,
                "framed_choices": 2,
                "scene_choices": 3,
                "told_choices": 12,
                "told_claims": 2,
                "told_questions": 8,
                "yes_no": 16,
                "talk": 9,
                "stories": 1,
            },
            fall=700,
            turns=(4, 4, 4, 4, 1, 1),
            follow_ups=0.1,
            prompt_share=0.0,
        ),
    )
    batch: int = 64
    rate: float = 1e-3
    embedding_rate: float = 1e-3
