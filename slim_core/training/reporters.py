# SPDX-License-Identifier: Apache-2.0
"""Other logging targets: transformers' integrations whose package is installed."""

from __future__ import annotations

from collections.abc import Sequence

from transformers.integrations import get_available_reporting_integrations, is_flytekit_available
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..outside.errors import first_line, quoted
from .errors import TrainingError


ALONE = ("all", "none")


def check_report_to(names: Sequence[str]) -> None:
    """Refuse integrations that do not exist or are not installed, before the run begins.

    Raises:
        TrainingError: with a sentence that lists those that can be used.
    """
    installed = available()
    there_is = f"installed here: {', '.join(installed) if installed else 'none'}"
    for name in names:
        if name in ALONE and len(set(names)) > 1:
            raise TrainingError(f"--report-to {name} must be used alone; leave out the others.")
        if name in ALONE or name in installed:
            continue
        if name in INTEGRATION_TO_CALLBACK:
            raise TrainingError(
                f"--report-to {name} is not installed ({there_is}); install its package, or leave the flag out."
            )
        known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
        raise TrainingError(f"--report-to {quoted(name)} does not exist ({there_is}); there are {known}.")


def cannot_report(names: Sequence[str], error: Exception) -> TrainingError:
    """The message if an integration prevents the run from starting, most often because nobody is logged in."""
    return TrainingError(
        f"Training cannot begin with --report-to {', '.join(names)}: {first_line(error)}; set it up, or leave the "
        "flag out."
    )


def available() -> list[str]:
    """The integrations that are installed."""
    # It is not in transformers' own list.
    return sorted({*get_available_reporting_integrations(), *(["flyte"] if is_flytekit_available() else [])})
