"""What the shared cache of vectors does beyond what ``knowledge/test_index.py`` asks of it."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import pytest

from expert_router.errors import NotReadyError
from expert_router.vectors import embed_texts
from support import WordEncoder, eventually, run_on_full_disk

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

TEXTS = [f"question number {n}" for n in range(10)]
FULL_DISK = """
import logging, sys
from pathlib import Path
import numpy as np
from expert_router.vectors import embed_texts
class Encoder:
    sha256 = "e" * 64
    def encode_all(self, texts):
        return (np.ones(128, dtype=np.float32) for text in texts)
logging.basicConfig(level="WARNING")
texts = [f"text {n}" for n in range(50)]
print(embed_texts(texts, Encoder(), Path(sys.argv[1]), label="read", progress=False).shape)
"""


class CountingEncoder(WordEncoder):
    """Keeps which texts were truly read, where ``read`` has those that were to be."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[str] = []

    def encode(self, text: str) -> NDArray[np.float32]:
        self.encoded.append(text)
        return super().encode(text)


class SlowEncoder(WordEncoder):
    """Waits in the middle of its first text."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = Event(), Event()

    def encode(self, text: str) -> NDArray[np.float32]:
        self.begun.set()
        assert self.go_on.wait(5)
        return super().encode(text)


def test_who_stops_it_keeps_what_was_read_and_goes_on_from_there(tmp_path: Path) -> None:
    first, second = CountingEncoder(), CountingEncoder()
    with pytest.raises(NotReadyError, match=r"read them: stopped before all 10 texts were read\. Start it again"):
        embed_texts(TEXTS, first, tmp_path, label="read them", progress=False, stopped=lambda: len(first.encoded) > 4)
    assert first.encoded == TEXTS[:5]
    vectors = embed_texts(TEXTS, second, tmp_path, label="read them", progress=False)
    assert second.encoded == TEXTS[4:]
    assert np.array_equal(vectors, np.array([WordEncoder().encode(text) for text in TEXTS], dtype=np.float16))


def test_stopped_before_the_first_text_it_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError):
        embed_texts(TEXTS, WordEncoder(), tmp_path, label="read", progress=False, stopped=lambda: True)
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_comes_twice_is_read_once(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    vectors = embed_texts(["one", "two", "one"], encoder, tmp_path, label="read", progress=False)
    assert encoder.encoded == ["one", "two"]
    assert np.array_equal(vectors[0], vectors[2])


def test_a_full_disk_costs_the_file_and_not_the_vectors(tmp_path: Path) -> None:
    done = run_on_full_disk([sys.executable, "-B", "-c", FULL_DISK, str(tmp_path)], 2000)
    assert (done.returncode, done.stdout) == (0, "(50, 128)\n")
    assert "cannot be kept (File too large): its texts are read again at the next start" in done.stderr
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_while_one_reads_others_wait_for_what_it_reads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    slow, idle = SlowEncoder(), CountingEncoder()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(embed_texts, TEXTS, slow, tmp_path, label="read", progress=False)
        assert slow.begun.wait(5)
        second = pool.submit(embed_texts, TEXTS, idle, tmp_path, label="read", progress=False)
        eventually(lambda: "read: waiting for another process that does" in caplog.text)
        assert not second.done()
        slow.go_on.set()
        assert np.array_equal(first.result(), second.result())
    assert idle.encoded == []


def test_who_waits_for_another_can_be_stopped(tmp_path: Path) -> None:
    slow, stop = SlowEncoder(), Event()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(embed_texts, TEXTS, slow, tmp_path, label="read", progress=False)
        assert slow.begun.wait(5)
        second = pool.submit(
            embed_texts, TEXTS, WordEncoder(), tmp_path, label="wait", progress=False, stopped=stop.is_set
        )
        stop.set()
        with pytest.raises(NotReadyError, match="wait: stopped"):
            second.result(5)
        slow.go_on.set()
        assert len(first.result()) == len(TEXTS)
