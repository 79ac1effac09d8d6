"""Texts to vectors, once: what an encoder made of a text is kept in the cache by the text's hash.

Passages to search and questions to compare with are many and seldom change; an encoder needs a millisecond for each.
"""

from __future__ import annotations

import hashlib
import io
import logging
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from expert_router.artifacts import write_atomically
from expert_router.errors import NotReadyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from expert_router.ports import TextEncoder

logger = logging.getLogger(__name__)

MOST_KEPT = 200_000
"""Vectors in a folder's file: 150 MB."""
LOOKS_AGAIN_S = 0.2
"""Who waits for another process notices within it that it should stop."""


def embed_texts(
    texts: Sequence[str],
    encoder: TextEncoder,
    folder: Path,
    *,
    label: str,
    progress: bool,
    stopped: Callable[[], bool] = lambda: False,
) -> NDArray[np.float16]:
    """Shape (N, D), in the texts' order; ``folder`` keeps a file for each encoder, so that only new texts are read.

    ``label`` names the progress bar. Raises ``NotReadyError`` once ``stopped`` says so; what was read until then is
    kept. Safe across processes: one reads, the others wait for it.
    """
    hashes = [_hash(text) for text in texts]
    wanted = dict(zip(hashes, texts, strict=True))
    path = folder / f"{encoder.sha256[:16]}.npy"
    vectors = _kept(path)
    if not vectors.keys() >= wanted.keys():
        with _alone(path, stopped, label):
            vectors |= _kept(path)
            if new := {known: text for known, text in wanted.items() if known not in vectors}:
                bar = {"total": len(new), "desc": label, "unit": "text", "disable": None if progress else True}
                vectors |= _read(new, encoder, stopped, bar)
                _keep(path, {known: vectors[known] for known in (*wanted, *vectors) if known in vectors})
    if not vectors.keys() >= wanted.keys():
        raise NotReadyError(f"{label}: stopped before all {len(texts)} texts were read. Start it again to go on.")
    return np.array([vectors[known] for known in hashes], dtype=np.float16)


@contextmanager
def _alone(path: Path, stopped: Callable[[], bool], label: str) -> Iterator[None]:
    """Two processes that read the same texts at once would each take twice as long."""
    lock = FileLock(f"{path}.lock")
    waits = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while not lock.is_locked and not stopped():
            try:
                lock.acquire(timeout=LOOKS_AGAIN_S)
            except Timeout:
                if not waits:
                    logger.warning("%s: waiting for another process that does", label)
                waits = True
    except OSError as error:  # a read-only cache: each reads for itself
        logger.debug("%s cannot be locked: %s", path, error)
    try:
        yield
    finally:
        lock.release()


def _read(
    texts: Mapping[int, str], encoder: TextEncoder, stopped: Callable[[], bool], bar: Mapping[str, Any]
) -> dict[int, NDArray[np.float32]]:
    """Leaving this function ends what the encoder still does."""
    embedded = tqdm(encoder.encode_all(list(texts.values())), **bar)
    return dict(zip(texts, takewhile(lambda _: not stopped(), embedded), strict=False))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _kept(path: Path) -> dict[int, NDArray[np.float32]]:
    """The vectors of an earlier start by the hash of their text; what is missing, or is no such file, is made anew."""
    with suppress(Exception):
        rows = np.load(path, allow_pickle=False)
        return dict(zip(rows["hash"].tolist(), rows["vector"], strict=True))
    return {}


def _keep(path: Path, vectors: Mapping[int, NDArray[np.float32]]) -> None:
    """Those that come first; other texts, or those of earlier days, stay as far as there is room."""
    kept = list(vectors.items())[:MOST_KEPT]
    if not kept:
        return
    rows = np.zeros(len(kept), dtype=[("hash", "<u8"), ("vector", "<f2", kept[0][1].shape)])
    for row, (known, vector) in zip(rows, kept, strict=True):
        row["hash"], row["vector"] = known, vector
    buffer = io.BytesIO()
    np.save(buffer, rows)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:  # a full or read-only disk costs the next start its time, not this one its vectors
        logger.warning("%s cannot be kept (%s): its texts are read again at the next start", path, error.strerror)
