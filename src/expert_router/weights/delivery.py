"""What the carriers of a weight file share: the delivery they work on, checks of disk and hash, and the plain copy."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from expert_router.weights.lock import LockedFile
    from expert_router.weights.progress import Progress

BLOCK = 1 << 20
_SPARE_DISK = 16 * 1024**2


class SourceError(Exception):
    """Why one source did not give the file; the next one is tried."""


class SourceSkippedError(SourceError):
    """Not even tried, for a reason that an earlier file has shown already."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One file on its way. ``partial`` outlives an interrupted run, the ``scratch`` folder does not."""

    cache: Path
    file: LockedFile
    partial: Path
    scratch: Path
    token: str | None
    progress: Progress


def copy_from_path(path: Path, delivery: Delivery) -> Path:
    """A copy of a file that is here already: a link would change when the original does."""
    file, progress = delivery.file, delivery.progress
    if not path.is_file():
        raise SourceError("there is no such file")
    require_size(path.stat().st_size, file.size)
    require_space(delivery.scratch, file.size)
    progress.start(file.size)
    progress.step(f"copying {path}")
    copy, digest = delivery.scratch / file.name, hashlib.sha256()
    with path.open("rb") as stream, copy.open("wb") as out:
        copy_hashed(stream, out, digest)
        sync(out)
    progress.reach(file.size)
    require_hash(digest.hexdigest(), file.sha256)
    return copy


def copy_hashed(stream: IO[bytes], out: IO[bytes], *digests: hashlib._Hash) -> None:
    while block := stream.read(BLOCK):
        out.write(block)
        for digest in digests:
            digest.update(block)


def sync(out: IO[bytes]) -> None:
    """On the disk, not only on its way there: a name must never outlive a power cut that its content did not."""
    out.flush()
    os.fsync(out.fileno())


def require_size(found: int, expected: int) -> None:
    if found != expected:
        raise SourceError(f"it has {found} bytes, {expected} are pinned")


def require_hash(found: str, expected: str) -> None:
    if found != expected:
        raise SourceError(f"its sha256 is {found}, {expected} is pinned")


def require_space(folder: Path, needed: int) -> None:
    """Fail before a download that cannot end well, and say how much is missing."""
    free = shutil.disk_usage(folder).free
    if (short := needed + _SPARE_DISK - free) > 0:
        raise SourceError(
            f"the disk of {folder.parent} is too full: {_megabytes(needed)} are needed, {_megabytes(free)} are free; "
            f"free {_megabytes(short)} more, or set paths.cache to a larger disk"
        )


def is_disk_full(error: OSError) -> bool:
    return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
