"""Clients in turn, experts of a client in turn, and each of them first come, first served."""

from __future__ import annotations

import asyncio
import random

import pytest

from expert_router.serving.fair_queue import FairQueue, Place


def place(name: str) -> Place:
    """``A:cars`` is client A's, for the expert cars."""
    client, _, expert = name.partition(":")
    return Place(client, expert, asyncio.get_running_loop().create_future())


def queue_of(*names: str) -> FairQueue:
    queue = FairQueue()
    for name in names:
        queue.push(place(name))
    return queue


def served(queue: FairQueue) -> list[str]:
    places = [queue.pop() for _ in range(len(queue))]
    return [f"{each.client}:{each.expert}" for each in places]


@pytest.mark.parametrize(
    ("waiting", "order"),
    [
        ("A: A: A: B: C:", "A: B: C: A: A:"),
        ("A: A: B: B: C: C:", "A: B: C: A: B: C:"),
        ("A:cars A:cars A:cars A:sleep", "A:cars A:sleep A:cars A:cars"),
        ("A:cars A:cars A:sleep B:cars", "A:cars B:cars A:sleep A:cars"),
    ],
)
async def test_each_has_its_turn(waiting: str, order: str) -> None:
    assert served(queue_of(*waiting.split())) == order.split()


async def test_one_client_with_two_hundred_delays_anothers_first_by_one_turn() -> None:
    queue = queue_of(*["A:"] * 200)
    queue.push(place("B:"))
    assert queue.ahead_of("C") == 2
    assert [queue.pop().client for _ in range(3)] == ["A", "B", "A"]


async def test_those_that_are_expected_count_as_if_they_had_joined() -> None:
    queue = queue_of("A:", "A:")
    queue.expect("A")
    queue.expect("B")
    assert [queue.ahead_of(client) for client in "ABC"] == [4, 3, 2]
    assert (queue.of("A"), queue.of("B"), len(queue)) == (3, 1, 2)
    queue.arrived("A")
    queue.arrived("B")
    assert [queue.ahead_of(client) for client in "ABC"] == [2, 1, 1]
    assert served(queue) == ["A:", "A:"]


async def test_who_comes_back_goes_to_the_end_of_the_round() -> None:
    queue = queue_of("A:", "A:", "B:", "C:")
    assert queue.pop().client == "A"
    assert queue.pop().client == "B"
    queue.push(place("B:"))
    assert served(queue) == ["C:", "A:", "B:"]


async def test_who_leaves_the_queue_costs_the_others_nothing() -> None:
    queue = queue_of("A:", "C:")
    leaver, other = place("B:cars"), place("B:sleep")
    queue.push(leaver)
    queue.push(other)
    queue.remove(leaver)
    assert (len(queue), queue.of("B")) == (3, 1)
    queue.remove(other)
    assert (len(queue), queue.of("B")) == (2, 0)
    assert served(queue) == ["A:", "C:"]
    with pytest.raises(KeyError):
        queue.remove(leaver)


@pytest.mark.parametrize("seed", range(20))
async def test_nobody_waits_longer_than_was_said_unless_others_come(seed: int) -> None:
    chance = random.Random(seed)
    queue = queue_of(*[f"{chance.choice('ABCD')}:{chance.choice('xy')}" for _ in range(chance.randrange(40))])
    before = len(queue)
    newcomer = place("A:z")
    ahead = queue.ahead_of("A")
    queue.push(newcomer)
    order = [queue.pop() for _ in range(before + 1)]
    assert order.index(newcomer) <= ahead <= before
    assert len(queue) == 0
