# SPDX-License-Identifier: Apache-2.0
"""Where a base model's files are: in a folder, on the Hub, or in the Hub library's cache."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedConfig

from ..outside.errors import quoted
from .choice import BaseChoice, named_folder
from .errors import EngineError
from .folder import INDEX, FolderFiles
from .hub import TEXTS, HubFiles
from .progress import OnProgress


class BaseFiles(Protocol):
    """Where a base model's files come from.

    Attributes:
        size: bytes that are fetched; 0 where all is here.
    """

    size: int

    def config(self, stop: threading.Event | None = None) -> PreTrainedConfig:
        """Its config alone.

        Args:
            stop: set it to end a download.

        Raises:
            EngineError: if it cannot be had, or describes what cannot be loaded.
        """
        ...

    def fetch(self, on_progress: OnProgress, stop: threading.Event) -> Path:
        """Fetch all files into a folder.

        Args:
            on_progress: called with bytes so far and in all, from another thread.
            stop: set it to end a download.

        Raises:
            EngineError: if something is missing, or goes wrong on the way.
        """
        ...


@contextmanager
def base_files(choice: BaseChoice) -> Iterator[BaseFiles]:
    """Find a base model. Files fetched for a visitor are deleted when the context ends.

    Raises:
        EngineError: if there is none of that name.
    """
    folder = named_folder(choice.base) if choice.operator else None
    if folder is not None:
        if choice.revision is not None:
            raise EngineError(
                f"{choice.label} is a folder, which has no revision {quoted(choice.revision)}; name a Hub id, or "
                "leave the revision out."
            )
        yield FolderFiles(folder, choice.label)
    elif choice.operator:
        yield _of_the_operator(choice)
    else:
        # A download that was stopped may still be writing; it cleans up after itself.
        with tempfile.TemporaryDirectory(prefix="slim-base-", ignore_cleanup_errors=True) as private:
            yield HubFiles(choice, Path(private))


def _of_the_operator(choice: BaseChoice) -> BaseFiles:
    """From the Hub, or from the library's cache if there is no connection."""
    if choice.base.startswith((".", "/", "~")):
        name = quoted(choice.base, 200)[1:-1]
        raise EngineError(f"There is no folder {name}; name a folder or a Hub id such as Qwen/Qwen3-0.6B.")
    try:
        validate_repo_id(choice.base)
    except HFValidationError:
        raise EngineError(
            f"The base {quoted(choice.base, 200)} is neither a folder nor a Hub id; name a folder or a Hub id such as "
            "Qwen/Qwen3-0.6B."
        ) from None
    try:
        return HubFiles(choice, None)
    except EngineError as error:
        # If the Hub itself refused, the cache is not used.
        if error.__cause__ is not None and not isinstance(error.__cause__, HfHubHTTPError):
            try:
                patterns = [*TEXTS, "*.safetensors", INDEX]
                folder = snapshot_download(
                    choice.base, revision=choice.revision, local_files_only=True, allow_patterns=patterns
                )
                return FolderFiles(Path(folder), choice.label)
            except LocalEntryNotFoundError:
                pass
        raise
