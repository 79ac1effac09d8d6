"""Weights from the Hugging Face hub, through its own client: its cache, token, proxies and transfer protocols apply."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from expert_router.weights.delivery import (
    Delivery,
    SourceError,
    SourceSkippedError,
    copy_from_path,
    is_disk_full,
    require_hash,
    require_size,
    require_space,
)
from expert_router.weights.progress import watch_growth

if TYPE_CHECKING:
    from collections.abc import Callable

    from huggingface_hub import HfFileMetadata

    from expert_router.weights.lock import HubSource, LockedFile

T = TypeVar("T")

_REQUEST_S = 4.0
_DEADLINE_S = 5.0
_SHA256_DIGITS = 64


def download_from_hub(source: HubSource, delivery: Delivery) -> Path:
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - 0.1 s that a start with all files saves

    cached = try_to_load_from_cache(source.repo, source.file, revision=source.revision)
    if isinstance(cached, str):
        return copy_from_path(Path(cached), delivery)
    try:
        return _download(source, delivery)
    except SourceError:
        raise
    except Exception as error:  # its client raises errors of twenty kinds: whichever it is, the next source is tried
        if isinstance(error, OSError) and is_disk_full(error):
            raise
        raise SourceError(_one_line(error)) from error


def _download(source: HubSource, delivery: Delivery) -> Path:
    from huggingface_hub import hf_hub_download  # noqa: PLC0415

    file, progress = delivery.file, delivery.progress
    commit = _HUB.find(source, file, delivery.token)
    require_space(delivery.scratch, file.size)
    progress.start(file.size)
    progress.step(str(source))
    no_bar_of_its_own: Any = partial(tqdm, disable=True)
    with watch_growth(delivery.scratch, progress.reach):
        path = hf_hub_download(
            source.repo,
            source.file,
            revision=commit,
            token=delivery.token,
            local_dir=delivery.scratch,
            tqdm_class=no_bar_of_its_own,
        )
    progress.reach(file.size)
    return _verified(Path(path), file)


def _verified(path: Path, file: LockedFile) -> Path:
    with path.open("rb+") as stream:
        require_hash(hashlib.file_digest(stream, "sha256").hexdigest(), file.sha256)
        os.fsync(stream.fileno())
    return path


class _Hub:
    """The hub as this process has met it: once it did not answer in time, nobody waits for it again."""

    def __init__(self) -> None:
        self._problem: str | None = None

    def find(self, source: HubSource, file: LockedFile, token: str | None) -> str:
        """The commit that holds the file, after a look at size and hash: a wrong file is not downloaded at all."""
        import httpx2  # noqa: PLC0415
        from huggingface_hub.errors import OfflineModeIsEnabled  # noqa: PLC0415

        if self._problem is not None:
            raise SourceSkippedError(f"skipped, {self._problem} before")
        try:
            metadata = _within(_DEADLINE_S, lambda: _metadata(source, token))
        except (httpx2.TransportError, OfflineModeIsEnabled, TimeoutError) as error:
            self._problem = "the hub could not be reached"
            raise SourceError(f"{self._problem} ({_one_line(error)})") from error
        if metadata.commit_hash is None:  # a login page of some network
            self._problem = "what answered was not the hub"
            raise SourceError(self._problem)
        if metadata.size is not None:
            require_size(metadata.size, file.size)
        if metadata.etag and len(metadata.etag) == _SHA256_DIGITS:  # large files; small ones carry a git hash
            require_hash(metadata.etag, file.sha256)
        return metadata.commit_hash


_HUB = _Hub()


def _metadata(source: HubSource, token: str | None) -> HfFileMetadata:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url  # noqa: PLC0415

    url = hf_hub_url(source.repo, source.file, revision=source.revision)
    return get_hf_file_metadata(url, token=token, timeout=_REQUEST_S)


def _within(seconds: float, ask: Callable[[], T]) -> T:
    """The answer of ``ask``, or ``TimeoutError``: name resolution heeds no timeout of an HTTP client."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001 - handed to the waiting thread
            answer.set_exception(error)

    threading.Thread(target=run, name="hub-request", daemon=True).start()
    return answer.result(timeout=seconds)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
