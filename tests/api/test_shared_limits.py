"""What several processes know of each other's keys: two that are ones to each other, in one."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from expert_router.api.rate_limits import KeyLimits
from expert_router.api.shared_limits import TRIES, SharedLimits
from expert_router.errors import RateLimitError
from expert_router.keys import new_key

if TYPE_CHECKING:
    from pathlib import Path

    from expert_router.keys import Key


@pytest.fixture
def key() -> Key:
    return new_key("laura", requests_per_minute=6, tokens_per_minute=100, max_running=2)[0]


def two(folder: Path, key: Key) -> tuple[KeyLimits, KeyLimits]:
    first, second = (KeyLimits(key, Clock(), SharedLimits(folder, number).of(key.id)) for number in (0, 1))
    return first, second


class Clock:
    def __call__(self) -> float:
        return 1000.0


def ask(limits: KeyLimits) -> None:
    with limits.request():
        pass


def test_requests_of_all_count_together(tmp_path: Path, key: Key) -> None:
    first, second = two(tmp_path, key)
    for _ in range(3):
        ask(first)
        ask(second)
    for each in (first, second):
        with pytest.raises(RateLimitError, match="6 requests a minute"):
            ask(each)
        assert (b"x-ratelimit-remaining-requests", b"0") in each.headers()


def test_tokens_of_all_count_together(tmp_path: Path, key: Key) -> None:
    first, second = two(tmp_path, key)
    first.charge(60)
    second.charge(60)
    for each in (first, second):
        with pytest.raises(RateLimitError, match="100 tokens a minute"):
            ask(each)


def test_what_runs_anywhere_counts_until_its_process_is_replaced(tmp_path: Path, key: Key) -> None:
    first, second = two(tmp_path, key)
    with ExitStack() as running:
        running.enter_context(first.request())
        running.enter_context(second.request())
        with pytest.raises(RateLimitError, match="2 requests at once"):
            ask(first)
        SharedLimits(tmp_path, 1)  # in place of the second, which was killed
        ask(first)
    ask(second)


def test_other_limits_of_the_same_key_begin_anew(tmp_path: Path, key: Key) -> None:
    first, second = two(tmp_path, key)
    for _ in range(6):
        ask(first)
    second.follow(key.model_copy(update={"requests_per_minute": 7}))
    for _ in range(7):
        ask(second)
    with pytest.raises(RateLimitError, match="7 requests a minute"):
        ask(second)


@pytest.mark.parametrize("written", [b"", b"{", b"[1]", b'{"requests": []}'])
def test_what_a_killed_process_left_half_written_is_begun_anew(tmp_path: Path, key: Key, written: bytes) -> None:
    first, second = two(tmp_path, key)
    (tmp_path / key.id).write_bytes(written)
    for _ in range(3):
        ask(first)
        ask(second)
    with pytest.raises(RateLimitError, match="6 requests a minute"):
        ask(first)


def test_where_nothing_can_be_kept_each_counts_for_itself(tmp_path: Path, key: Key) -> None:
    (tmp_path / "file").write_text("")
    first, second = two(tmp_path / "file", key)
    for each in (first, second):
        for _ in range(6):
            ask(each)
        with pytest.raises(RateLimitError):
            ask(each)


def test_one_that_was_stopped_while_it_counts_keeps_nobody_waiting(tmp_path: Path, key: Key) -> None:
    first, _ = two(tmp_path, key)
    with SharedLimits(tmp_path, 2).of(key.id).changing():
        began = time.monotonic()
        ask(first)
        assert time.monotonic() - began < TRIES / 10
