"""What readers are offered: files that were right once, with bytes changed, cut out, doubled or put in."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hypothesis.strategies import SearchStrategy

DEEP = 100_000
"""Of brackets within brackets: far more than a parser that calls itself can follow."""
NASTY = [
    b"", b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n\n", b'"', b"{", b"[" * DEEP, b"NaN", b"1e999",
    b"9" * 5000, b"-1", b"null", b"true", b"..", b"\xe2\x80\xa8", b"\\ud800", b"\xff" * 8, b"\x00" * 8,
]  # fmt: skip

fuzzed = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""The same examples each time, so that what fails here fails everywhere."""


@st.composite
def damaged(draw: Callable[[SearchStrategy[object]], object], whole: bytes) -> bytes:
    """``whole`` after one to four accidents; seldom something else altogether."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 64)) | st.just(len(content)))
        content[start:end] = draw(
            st.binary(max_size=16) | st.sampled_from(NASTY) | st.just(bytes(content[start:end]) * 2)
        )
    return bytes(content)


def only_raises(read: Callable[[Path], object], path: Path, content: bytes, *errors: type[Exception]) -> None:
    """The reader says what it says, or one of ``errors``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with suppress(*errors):
        read(path)
