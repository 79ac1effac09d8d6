from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expert_router.caching.recording import is_whole, read, written
from expert_router.types import Chunk, Usage

END = Chunk("", "stop", Usage(12, 3))
ANSWER = (Chunk(""), Chunk("[1]", probability=0.875), Chunk(" é\n"), Chunk("."), END)


def test_an_answer_is_read_as_it_was_written() -> None:
    assert read(written(ANSWER)) == ANSWER


@given(st.lists(st.text()), st.text(), st.sampled_from(["stop", "length"]), st.floats(0, 1))
def test_any_answer_is(texts: list[str], last: str, reason: str, probability: float) -> None:
    end = Chunk(last, reason, Usage(0, 2**40), probability)  # type: ignore[arg-type]
    answer = (*map(Chunk, texts), end)
    assert read(written(answer)) == answer


def test_plain_pieces_take_little_more_than_their_text() -> None:
    answer = [*(Chunk(" word") for _ in range(80)), END]
    assert len(written(answer)) < 80 * len(' word"",') + 40


@pytest.mark.parametrize(
    "chunks",
    [(), ANSWER[:-1], (END, Chunk("more")), (END, END), (Chunk("a", "stop"),), (Chunk("a", None, Usage(1, 1)),)],
)
def test_an_answer_that_is_not_whole_is_none(chunks: tuple[Chunk, ...]) -> None:
    assert not is_whole(chunks)
    assert read(written(chunks)) is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff\x00",
        b"null",
        b"7",
        b'"text"',
        b'{"text": 1}',
        b"[1]",
        b"[[]]",
        b'[["a", "stop"]]',
        b'[["a", "because", [1, 2], null]]',
        b'[["a", ["stop"], [1, 2], null]]',
        b'[["a", "stop", [1], null]]',
        b'[["a", "stop", [1, "2"], null]]',
        b'[["a", "stop", [true, 2], null]]',
        b'[["a", "stop", 3, null]]',
        b'[["a", "stop", [1, 2], "sure"]]',
        b'[[null, "stop", [1, 2], null]]',
        b"[" * 100_000,
    ],
)
def test_what_is_no_answer_is_none(value: bytes) -> None:
    assert read(value) is None


def test_a_value_that_was_cut_anywhere_is_none() -> None:
    whole = written(ANSWER)
    assert [read(whole[:end]) for end in range(len(whole))] == [None] * len(whole)
    assert json.loads(whole)[0] == ""
