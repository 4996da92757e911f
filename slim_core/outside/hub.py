# SPDX-License-Identifier: Apache-2.0
"""An adapter by its Hub id: two named files of one pinned commit, with sizes known before the download.

Everything goes through huggingface_hub's own functions. A visitor's id is fetched without any token.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import HfFileMetadata
from huggingface_hub.utils import tqdm

from .errors import AdapterError, megabytes, quoted
from .files import CONFIG, WEIGHTS, check_bytes
from .formats import instead_of_adapter
from .limits import Limits


# A letter or digit at both ends of a part, so that neither part can be `.` or `..`.
PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
REPOSITORY = re.compile(rf"{PART}/{PART}\Z")
REVISION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,198}[A-Za-z0-9])?\Z")
SHA1, SHA256 = re.compile(r"[0-9a-f]{40}\Z"), re.compile(r"[0-9a-f]{64}\Z")
# The Hub has to answer within this many seconds; the download as a whole has `Limits.seconds`.
ANSWER_SECONDS = 10.0
# How often a download checks whether it is still wanted, in seconds.
LOOK_SECONDS = 0.2
# How long to wait for others' downloads to end, in seconds.
WAITING_SECONDS = 300.0
# Connection errors by name, whichever HTTP client the library uses.
UNREACHABLE = {"ConnectError", "ConnectTimeout", "ProxyError"}
# Downloads at a time, of all visitors.
DOWNLOADS = ThreadPoolExecutor(max_workers=4, thread_name_prefix="adapter-download")
# Downloads that go over plain HTTP now, and what the library's switch for Xet was before the first of them.
_over_http, _without_xet, _http_lock = 0, False, threading.Lock()


class StoppedError(Exception):
    """Raised inside a download that is no longer wanted."""


@dataclass(frozen=True)
class HubRepository:
    """An adapter on the Hub.

    Attributes:
        repository: its id, `owner/name`.
        revision: branch, tag or commit; None for the main branch.
        operator: the operator chose this id, so the operator's token may be used. Never for what a visitor types.
        on_progress: called with bytes so far and in all, from another thread.
        stop: set it to end a download.
        endpoint: another Hub than the configured one.
    """

    repository: str
    revision: str | None = None
    operator: bool = False
    on_progress: Callable[[int, int], None] = lambda done, total: None
    stop: threading.Event = field(default_factory=threading.Event, compare=False)
    endpoint: str | None = None

    @property
    def label(self) -> str:
        return self.repository.rpartition("/")[2]

    def copy_to(self, folder: Path, limits: Limits) -> None:
        """See `Source`. Once it starts, everything together may take at most `limits.seconds`."""
        check_id(self.repository, self.revision)
        stop = threading.Event()
        fetching = DOWNLOADS.submit(self._fetch, folder / "download", limits, stop)
        try:
            files = self._awaited(fetching, limits.seconds)
            for name in files:
                (folder / "download" / name).replace(folder / name)
            check_content(folder / WEIGHTS, files[WEIGHTS], self.repository)
        except AdapterError:
            raise
        except Exception as error:  # the library passes on errors of its HTTP client and the disk
            raise explained(error, self.repository, self.revision) from None
        finally:
            stop.set()
            fetching.cancel()
            shutil.rmtree(folder / "download", ignore_errors=True)

    def _awaited(self, fetching: Future, seconds: float) -> dict[str, HfFileMetadata]:
        # Waiting for other downloads is not part of its time, but is limited too.
        end, started = time.monotonic() + WAITING_SECONDS, False
        while not wait([fetching], LOOK_SECONDS).done:
            if self.stop.is_set():
                raise AdapterError(f"Fetching {self.repository} was stopped.")
            if not started and fetching.running():
                end, started = time.monotonic() + seconds, True
            if time.monotonic() > end and not started:
                raise AdapterError(
                    f"Too many downloads are running, so {self.repository} has to wait; try again later."
                )
            if time.monotonic() > end:
                raise AdapterError(
                    f"Fetching {self.repository} takes longer than the {seconds:.0f} seconds allowed; try again later."
                )
        return fetching.result()

    @property
    def token(self) -> bool | None:
        """The token in the form that huggingface_hub expects."""
        # None is the library's own look-up; False sends none even if there is one.
        return None if self.operator else False

    def commit(self) -> str:
        """The commit that the revision points to now. Everything is fetched from this commit."""
        api = HfApi(endpoint=self.endpoint, token=self.token)
        info = api.model_info(self.repository, revision=self.revision, timeout=ANSWER_SECONDS, expand=["sha"])
        if info.id.casefold() != self.repository.casefold():
            raise AdapterError(
                f"The Hub returned another repository, {quoted(info.id, 120)}: {self.repository} was renamed; use the "
                "new id if you trust it."
            )
        if not info.sha or not SHA1.match(info.sha):
            raise AdapterError(f"The Hub reports no commit of {self.repository}; try again later.")
        return info.sha

    def metadata(self, name: str, commit: str, limit: int) -> HfFileMetadata:
        """The Hub's metadata of one file, which must belong to this repository and have at most `limit` bytes."""
        url = hf_hub_url(self.repository, name, revision=commit, endpoint=self.endpoint)
        try:
            file = get_hf_file_metadata(url, token=self.token, timeout=ANSWER_SECONDS, endpoint=self.endpoint)
        except EntryNotFoundError:
            instead = instead_of_adapter(self._paths(commit), name)
            raise AdapterError(f"{self.repository} has no `{name}`{instead}") from None
        _check_location(url, file, self.repository, commit)
        if file.size is None:
            raise AdapterError(f"The Hub does not say how large `{name}` of {self.repository} is; try again later.")
        check_bytes(name, file.size, limit)
        if file.size == 0:
            raise AdapterError(f"`{name}` of {self.repository} is empty.")
        return file

    def _paths(self, commit: str) -> list[str]:
        """Paths of all its files, asked for where one is missing."""
        api = HfApi(endpoint=self.endpoint, token=self.token)
        info = api.model_info(self.repository, revision=commit, timeout=ANSWER_SECONDS, expand=["siblings"])
        return [file.rfilename for file in info.siblings or ()]

    def _fetch(self, folder: Path, limits: Limits, stop: threading.Event) -> dict[str, HfFileMetadata]:
        """Runs in a separate thread, since a slow connection cannot be interrupted from within."""
        try:
            commit = self.commit()
            files = {name: self.metadata(name, commit, limit) for name, limit in _limits_by_name(limits).items()}
            progress = progress_bar(sum(file.size or 0 for file in files.values()), self.on_progress, stop)
            for name in files:
                if stop.is_set():
                    raise StoppedError
                with over_http():
                    hf_hub_download(
                        self.repository,
                        name,
                        revision=commit,
                        local_dir=folder,
                        token=self.token,
                        endpoint=self.endpoint,
                        etag_timeout=ANSWER_SECONDS,
                        tqdm_class=progress,
                    )
            return files
        finally:
            if stop.is_set():  # nobody is waiting, and the private folder is or will be deleted
                shutil.rmtree(folder.parent, ignore_errors=True)


def _limits_by_name(limits: Limits) -> dict[str, int]:
    return {CONFIG: limits.config_bytes, WEIGHTS: limits.weights_bytes}


def check_id(repository: str, revision: str | None) -> None:
    """Refuse an invalid id or revision before any request.

    Raises:
        AdapterError: with the sentence.
    """
    if not REPOSITORY.match(repository) or ".." in repository or "--" in repository:
        raise AdapterError(
            f"{quoted(repository)} is not a Hub id; it must be owner/name, made of letters, digits, dots, dashes and "
            "underscores."
        )
    if revision is not None and (not REVISION.match(revision) or ".." in revision or "//" in revision):
        raise AdapterError(f"{quoted(revision)} is not a revision; it must be a branch, a tag or a commit.")


def _check_location(url: str, metadata: HfFileMetadata, repository: str, commit: str) -> None:
    """The Hub may redirect to external storage; a redirect to its own host must stay in this repository."""
    requested, target = urlsplit(url), urlsplit(metadata.location)
    same_host = not target.netloc or target.netloc == requested.netloc
    if same_host and f"/{repository}/".casefold() not in unquote(target.path).casefold():
        raise AdapterError(f"The Hub redirects {repository} to another repository; use that one's id if you trust it.")
    if metadata.commit_hash != commit:
        raise AdapterError(f"The Hub returned another commit of {repository} than the one requested; try again.")


@contextmanager
def over_http() -> Iterator[None]:
    """While this context is open, the library downloads over plain HTTP, not Xet.

    Xet reports from its own thread, where an exception does not end the download. The library's switch applies to the
    whole process, so other downloads meanwhile use HTTP too, and get the same files.
    """
    global _over_http, _without_xet
    with _http_lock:
        if not _over_http:
            _without_xet = constants.HF_HUB_DISABLE_XET
            constants.HF_HUB_DISABLE_XET = True
        _over_http += 1
    try:
        yield
    finally:
        with _http_lock:
            _over_http -= 1
            if not _over_http:
                constants.HF_HUB_DISABLE_XET = _without_xet


def progress_bar(total: int, on_progress: Callable[[int, int], None], stop: threading.Event) -> type[tqdm]:
    """A progress bar class for huggingface_hub that shows nothing, counts bytes, and can end the download."""
    done = 0

    class DownloadBar(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **(kwargs | {"disable": True}))

        def update(self, n: float | None = 1) -> None:
            nonlocal done
            done += int(n or 0)
            if stop.is_set():
                raise StoppedError
            if done > total:
                raise AdapterError(
                    f"The Hub sends more than the {megabytes(total)} that it announced; try again later."
                )
            on_progress(done, total)

        # With these two, Xet reports to one bar: what is written by `update`, what came over the network here. Only
        # the first counts bytes of the file, so the second is ignored.
        def update_transfer(self, n: float) -> None:
            if stop.is_set():
                raise StoppedError

        def set_transfer_postfix_str(self, *args, **kwargs) -> None:
            pass

    return DownloadBar


def check_content(path: Path, expected: HfFileMetadata, repository: str) -> None:
    """Check that the downloaded file is the announced one: its size and, for large files, the SHA-256 in their ETag.

    Raises:
        AdapterError: if it is not.
    """
    if path.stat().st_size != expected.size:
        raise AdapterError(f"`{path.name}` of {repository} has a different size than the Hub announced; try again.")
    if expected.etag is None or not SHA256.match(expected.etag):
        return
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected.etag:
            raise AdapterError(f"`{path.name}` of {repository} was damaged during the download; try again.")


def explained(error: Exception, repository: str, revision: str | None) -> AdapterError:
    """One sentence for an error of the library."""
    if isinstance(error, GatedRepoError):
        return AdapterError(
            f"{repository} is gated: its owner must grant access to the account whose token is used here; what a "
            "visitor names is fetched without a token."
        )
    if isinstance(error, RepositoryNotFoundError):
        return AdapterError(f"{repository} does not exist on the Hub or is private; check the id.")
    if isinstance(error, RevisionNotFoundError):
        return AdapterError(f"{repository} has no revision {quoted(revision)}; give a branch, a tag or a commit.")
    if isinstance(error, DisabledRepoError):
        return AdapterError(f"{repository} was disabled by the Hub.")
    if isinstance(error, OfflineModeIsEnabled):
        return AdapterError(
            f"{repository} cannot be fetched: HF_HUB_OFFLINE is set; unset it, or use local files or a local folder."
        )
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return AdapterError(f"The Hub refused {repository} with status {error.response.status_code}; try again later.")
    if isinstance(error, FileMetadataError):
        return AdapterError(f"{constants.ENDPOINT} does not answer like a Hub; check HF_ENDPOINT.")
    if type(error).__name__ in UNREACHABLE:
        return AdapterError(
            f"The Hub cannot be reached to look for {repository} ({type(error).__name__}); check the connection, or "
            "the name if a folder was meant."
        )
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return AdapterError(f"A file of {repository} has a different size than the Hub announced; try again.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return AdapterError(f"This machine has no room left on its disk for {repository}.")
    return AdapterError(
        f"The connection to the Hub broke while fetching {repository} ({type(error).__name__}); try again."
    )
