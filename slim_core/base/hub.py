# SPDX-License-Identifier: Apache-2.0
"""A base model's files on the Hub: of one commit, with sizes known before the download."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.file_download import HfFileMetadata
from huggingface_hub.hf_api import ModelInfo
from transformers import PreTrainedConfig

from ..outside.errors import AdapterError, quoted
from ..outside.hub import (
    ANSWER_SECONDS,
    SHA1,
    HubRepository,
    StoppedError,
    check_content,
    check_id,
    explained,
    over_http,
    progress_bar,
)
from .choice import BaseChoice
from .errors import EngineError
from .folder import CONFIG, INDEX, WEIGHTS, read_config
from .formatting import size
from .progress import OnProgress
from .untrusted import SHARD, TOKENIZER, TOKENIZER_FILES, check_index


# The files of tokenizer and config. Nothing else is fetched: no code, no pickles, no weights of other frameworks.
TEXTS = (
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
TEXT_BYTES = 32 * 1024 * 1024
TOKENIZER_BYTES = 128 * 1024 * 1024
# Limit for a config, which is read before anything else is known; real ones have a few kilobytes.
CONFIG_BYTES = 4 * 1024 * 1024
# A visitor's model must be downloaded within an hour.
VISITOR_SECONDS = 3600.0
# How often a download checks whether it is still wanted, in seconds.
LOOK_SECONDS = 0.2
# How much of the disk a download leaves free.
DISK_LEFT = 512 * 1024 * 1024
# Separate limits for operator and visitors, so that the operator does not wait behind visitors.
DOWNLOADS = {
    operator: ThreadPoolExecutor(max_workers=2, thread_name_prefix="base-download") for operator in (True, False)
}


class HubFiles:
    """Files of one commit on the Hub, with sizes known before the download.

    Args:
        choice: what is wanted.
        folder: where they go; None for the library's cache.
    """

    def __init__(self, choice: BaseChoice, folder: Path | None) -> None:
        self._choice, self._folder = choice, folder
        self._hub = HubRepository(choice.base, choice.revision, choice.operator, endpoint=choice.endpoint)
        with self._explained():
            if not choice.operator:
                check_id(choice.base, choice.revision)
            api = HfApi(endpoint=choice.endpoint, token=self._hub.token)
            info = api.model_info(choice.base, revision=choice.revision, timeout=ANSWER_SECONDS, files_metadata=True)
        self._commit = _commit_of(info, choice)
        self._sizes = _wanted(info, choice)
        self.size = sum(self._sizes.values())

    @property
    def _stopped(self) -> str:
        return f"Fetching {self._choice.base} was stopped."

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (EngineError, StoppedError):
            raise
        except AdapterError as error:
            raise EngineError(str(error)) from None
        except Exception as error:  # the library passes on errors of its HTTP client and the disk
            raise EngineError(str(explained(error, self._choice.base, self._choice.revision))) from error

    def config(self, stop: threading.Event | None = None) -> PreTrainedConfig:
        stop = stop or threading.Event()
        try:
            with self._explained():
                folder = self._get([CONFIG], progress_bar(self._sizes[CONFIG], lambda done, total: None, stop), stop)
        except StoppedError:
            raise EngineError(self._stopped) from None
        return read_config(folder, self._choice.label)

    def fetch(self, on_progress: OnProgress, stop: threading.Event) -> Path:
        room = shutil.disk_usage(self._folder or _existing(Path(constants.HF_HUB_CACHE))).free - DISK_LEFT
        if self.size > room:
            raise EngineError(
                f"{self._choice.label} has {size(self.size)} of files, but this machine's disk has free space for "
                f"only {size(max(0, room))}."
            )
        bar = progress_bar(self.size, on_progress, stop)
        # In a separate thread, since a slow connection cannot be interrupted from within.
        fetching = DOWNLOADS[self._choice.operator].submit(self._get_all, bar, stop)
        end = math.inf if self._choice.operator else time.monotonic() + VISITOR_SECONDS
        while not wait([fetching], LOOK_SECONDS).done:
            if stop.is_set():
                raise EngineError(self._stopped)
            if time.monotonic() > end:
                stop.set()
                raise EngineError(
                    f"Fetching {self._choice.base} takes longer than the {VISITOR_SECONDS / 60:.0f} minutes allowed."
                )
        try:
            with self._explained():
                folder = fetching.result()
        except StoppedError:
            raise EngineError(self._stopped) from None
        if INDEX in self._sizes:
            check_index(folder / INDEX, self._sizes, self._choice.label)
        on_progress(self.size, self.size)
        return folder

    def _get_all(self, bar: type, stop: threading.Event) -> Path:
        try:
            return self._get(list(self._sizes), bar, stop)
        finally:
            if stop.is_set() and self._folder:  # nobody is waiting, and the private folder is or will be deleted
                shutil.rmtree(self._folder, ignore_errors=True)

    def _get(self, names: list[str], bar: type, stop: threading.Event) -> Path:
        folder = self._folder
        for name in names:
            if stop.is_set():
                raise StoppedError
            expected = None if self._cached(name) else self._expected(name)
            with over_http():
                path = hf_hub_download(
                    self._choice.base,
                    name,
                    revision=self._commit,
                    local_dir=self._folder,
                    token=self._hub.token,
                    endpoint=self._choice.endpoint,
                    etag_timeout=ANSWER_SECONDS,
                    tqdm_class=bar,
                )
            if expected is not None:
                self._check(Path(path), expected)
            folder = folder or Path(path).parent
        assert folder is not None  # a base has files
        return folder

    def _cached(self, name: str) -> bool:
        """Whether the operator's cache has a file; it was checked when it was fetched."""
        if self._folder is not None:
            return False
        return isinstance(try_to_load_from_cache(self._choice.base, name, revision=self._commit), str)

    def _expected(self, name: str) -> HfFileMetadata:
        """The Hub's metadata of a file."""
        if not self._choice.operator:
            # It must not redirect to another repository, nor send more than announced.
            return self._hub.metadata(name, self._commit, self._sizes[name])
        # An operator may use the old name of a repository that was renamed.
        url = hf_hub_url(self._choice.base, name, revision=self._commit, endpoint=self._choice.endpoint)
        return get_hf_file_metadata(url, token=self._hub.token, timeout=ANSWER_SECONDS, endpoint=self._choice.endpoint)

    def _check(self, path: Path, expected: HfFileMetadata) -> None:
        """A damaged file is deleted, so that it is not taken from the cache next time."""
        try:
            check_content(path, expected, self._choice.base)
        except AdapterError:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise


def _commit_of(info: ModelInfo, choice: BaseChoice) -> str:
    if not choice.operator and info.id.casefold() != choice.base.casefold():
        raise EngineError(f"{choice.base} was renamed to {quoted(info.id, 120)}; use the new id if you trust it.")
    if not info.sha or not SHA1.match(info.sha):
        raise EngineError(f"The Hub reports no commit of {choice.base}; try again later.")
    return info.sha


def _wanted(info: ModelInfo, choice: BaseChoice) -> dict[str, int]:
    """Sizes of the files to fetch, by name."""
    label = choice.label
    texts = TEXTS if choice.operator else (CONFIG, "generation_config.json", *TOKENIZER_FILES)
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    if CONFIG not in sizes:
        raise EngineError(f"{label} has no {CONFIG}; name a model repository, not an adapter or a data set.")
    weights = [WEIGHTS] if WEIGHTS in sizes else [INDEX, *filter(SHARD.match, sizes)] if INDEX in sizes else []
    if not weights:
        raise EngineError(f"{label} has no {WEIGHTS}; other weight files are not opened.")
    to_fetch: dict[str, int] = {}
    for name in (*filter(sizes.__contains__, texts), *weights):
        bytes_of_file = sizes[name]
        if not bytes_of_file:
            raise EngineError(f"The Hub does not say how large {name} of {label} is; try again later.")
        limit = {CONFIG: CONFIG_BYTES, TOKENIZER: TOKENIZER_BYTES}.get(name, TEXT_BYTES)
        if not name.endswith(".safetensors") and bytes_of_file > limit:
            raise EngineError(f"{name} of {label} has {size(bytes_of_file)}; at most {size(limit)} are read.")
        to_fetch[name] = bytes_of_file
    return to_fetch


def _existing(path: Path) -> Path:
    """The path, or its nearest existing parent."""
    return next(parent for parent in (path, *path.parents) if parent.exists())
