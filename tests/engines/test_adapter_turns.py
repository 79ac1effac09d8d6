"""Requests that cannot share a batch: nobody waits for ever, and those that can run together do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from expert_router.engines.turns import Ticket, Turns


class Road:
    """Turns, and who has begun in which order."""

    def __init__(self, slots: int = 4, tokens: int = 1000) -> None:
        self.begun: list[Ticket] = []
        self.turns: Turns[Ticket] = Turns(slots, tokens, self.begun.append)

    def enter(self, kind: str | None, tokens: int = 1) -> Ticket:
        ticket = Ticket(kind, tokens)
        self.turns.enter(ticket)
        return ticket


def test_requests_of_one_kind_run_together_as_far_as_there_are_slots() -> None:
    road = Road(slots=2)
    first, second, third = (road.enter("a") for _ in range(3))
    assert road.begun == [first, second]
    road.turns.leave(second)
    assert road.begun == [first, second, third]


def test_another_kind_begins_once_those_that_run_have_ended_and_nobody_overtakes_it() -> None:
    road = Road()
    first, second = road.enter("a"), road.enter("a")
    others = [road.enter(kind) for kind in "bb"]
    late = road.enter("a")
    road.turns.leave(first)
    assert road.begun == [first, second]
    road.turns.leave(second)
    assert road.begun == [first, second, *others]
    for other in others:
        road.turns.leave(other)
    assert road.begun == [first, second, *others, late]


def test_when_who_waits_for_another_kind_gives_up_the_first_goes_on() -> None:
    road = Road()
    first, other = road.enter("a"), road.enter("b")
    late = road.enter("a")
    road.turns.withdraw(other)
    assert road.begun == [first, late]
    road.turns.withdraw(late)  # it runs: only its end makes room
    assert road.turns.close() == []


def test_requests_wait_for_memory_and_one_that_needs_more_than_there_is_runs_alone() -> None:
    road = Road(tokens=10)
    large, small = road.enter("a", 8), road.enter("a", 3)
    assert road.begun == [large]
    road.turns.leave(large)
    huge = road.enter("a", 99)
    assert road.begun == [large, small]
    road.turns.leave(small)
    assert road.begun == [large, small, huge]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 6)), max_size=30), st.randoms(use_true_random=False))
def test_whoever_comes_is_served_and_never_beside_another_kind(requests: list[tuple[str, int]], random: object) -> None:
    road = Road(slots=3, tokens=8)
    tickets = [road.enter(kind, tokens) for kind, tokens in requests]
    left: set[Ticket] = set()
    while running := [ticket for ticket in road.begun if ticket not in left]:
        assert len({ticket.kind for ticket in running}) == 1
        assert len(running) <= 3
        assert len(running) == 1 or sum(ticket.tokens for ticket in running) <= 8
        leaving = random.choice(running)  # type: ignore[attr-defined]
        left.add(leaving)
        road.turns.leave(leaving)
    assert sorted(map(id, road.begun)) == sorted(map(id, tickets))
