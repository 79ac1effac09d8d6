from __future__ import annotations

import itertools

from expert_router.engines.backoff import FIRST_PAUSE_S, LONGEST_PAUSE_S
from expert_router.engines.echo import EchoEngine
from expert_router.serving.standing import CALM_S, Standing
from support import build

WHY = "its process ended"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def standing() -> tuple[Standing, Clock]:
    clock = Clock()
    return Standing(build(EchoEngine()), clock), clock


def over_after_s(expert: Standing, clock: Clock) -> float:
    """How long it takes until an answer is believed, asked every quarter of a second."""
    began = clock.now
    while expert.refused():
        clock.now += FIRST_PAUSE_S / 4
        expert.worked("sleep")
    return clock.now - began


def test_what_works_is_believed_after_a_pause_that_doubles_when_trouble_comes_back() -> None:
    expert, clock = standing()
    pauses = []
    for _ in range(9):
        expert.failed("sleep", WHY)
        assert expert.refused() == {"sleep": WHY}
        pauses.append(over_after_s(expert, clock))
    assert pauses == [min(FIRST_PAUSE_S * 2**n, LONGEST_PAUSE_S) for n in range(9)]


def test_after_a_calm_time_trouble_is_the_first_again() -> None:
    expert, clock = standing()
    for calm_s, pause_s in ((0.0, FIRST_PAUSE_S), (CALM_S / 2, 2 * FIRST_PAUSE_S), (CALM_S, FIRST_PAUSE_S)):
        clock.now += calm_s
        expert.failed("sleep", WHY)
        assert over_after_s(expert, clock) == pause_s


def test_one_that_fails_now_and_then_does_not_come_and_go() -> None:
    expert, clock = standing()
    seen = []
    for _ in range(200):
        expert.failed("sleep", WHY)
        seen.append(bool(expert.refused()))
        clock.now += 3 * FIRST_PAUSE_S
        expert.worked("sleep")
        seen.append(bool(expert.refused()))
    assert sum(was != now for was, now in itertools.pairwise(seen)) <= 4
    assert seen[-1]


def test_an_expert_that_was_removed_is_nobodys_trouble() -> None:
    expert, _ = standing()
    expert.failed("bees", WHY)
    assert expert.refused() == {}
