"""How long a model is left alone whose process died."""

from __future__ import annotations

import pytest

from expert_router.engines.backoff import LONGEST_PAUSE_S
from expert_router.engines.revival import CALM_S, Revivals
from expert_router.errors import NotReadyError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pause_s(revivals: Revivals, clock: Clock, name: str = "base") -> int:
    """Whole seconds until it may be loaded again."""
    began = clock.now
    while True:
        try:
            revivals.check(name)
        except NotReadyError as error:
            clock.now += error.retry_after_s or 0
        else:
            return round(clock.now - began)


def test_the_first_death_costs_nobody_a_wait_and_each_further_one_twice_the_last(clock: Clock) -> None:
    revivals = Revivals(clock)
    pauses = []
    for _ in range(10):
        revivals.died("base", "killed")
        pauses.append(pause_s(revivals, clock))
    assert pauses == [0, 1, 2, 4, 8, 16, 32, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_PAUSE_S]


def test_who_waits_is_told_why_and_how_long_and_the_others_are_not_disturbed(clock: Clock) -> None:
    revivals = Revivals(clock)
    for _ in range(3):
        revivals.died("base", "by signal 11")
    with pytest.raises(NotReadyError, match=r"base ended 3 times in a row, the last time by signal 11\. .* in 2 s\."):
        revivals.check("base")
    revivals.check("another")
    assert revivals.status() == {"base": {"times": 3, "last": "by signal 11", "s_ago": 0.0}}


def test_after_a_long_life_a_death_is_the_first_again(clock: Clock) -> None:
    revivals = Revivals(clock)
    for _ in range(5):
        revivals.died("base", "killed")
    clock.now += CALM_S + 1
    revivals.died("base", "killed")
    assert pause_s(revivals, clock) == 0
    assert revivals.status()["base"]["times"] == 6
