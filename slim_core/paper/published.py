# SPDX-License-Identifier: Apache-2.0
"""Numbers of SLIM's paper (Han and others, NAACL 2025), in %, for the column next to ours."""

from __future__ import annotations

from statistics import fmean
from typing import NamedTuple


class Published(NamedTuple):
    """A row of the paper.

    Attributes:
        mmlu, gsm8k, piqa: of Table 2, after training on OBQA, SIQA and BoolQ together.
        downstream: the average over the downstream tasks; None where the printed copies differ.
    """

    mmlu: float
    gsm8k: float
    piqa: float
    downstream: float | None

    def means(self) -> dict[str, float]:
        """The mean by kind of task."""
        general = {"general": fmean((self.mmlu, self.gsm8k, self.piqa))}
        return general if self.downstream is None else general | {"downstream": self.downstream}


TABLE = {
    "lora": Published(32.73, 0.00, 60.99, 77.4),
    "dora": Published(31.07, 0.00, 57.18, 77.3),
    "loramoe": Published(60.20, 59.43, 79.54, 85.1),
    "mixlora": Published(55.41, 20.47, 77.36, 83.1),
    "mixlora-dy": Published(56.14, 21.38, 78.43, 83.2),
    "mola": Published(53.15, 15.54, 74.70, 83.1),
    "slim": Published(65.83, 76.11, 84.65, None),
}
SOURCE = (
    "The paper's numbers are of another base and other tasks: a model of several billion parameters, trained for two "
    "epochs on OpenBookQA, SocialIQA and BoolQ, and asked MMLU, GSM8K and PIQA."
)


def paper_means(method: str) -> dict[str, float]:
    """The paper's means of a method by kind of task; none if it has none."""
    return TABLE[method].means() if method in TABLE else {}
