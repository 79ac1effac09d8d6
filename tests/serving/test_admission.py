from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from expert_router.errors import OverloadedError
from expert_router.serving.admission import Admission

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Guest:
    """Someone who takes a slot and stays until told to leave."""

    def __init__(self, door: Admission, name: str = "", entered: list[str] | None = None) -> None:
        self.inside = False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._visit(door, name, entered))

    async def _visit(self, door: Admission, name: str, entered: list[str] | None) -> None:
        async with door.slot():
            self.inside = True
            if entered is not None:
                entered.append(name)
            await self._leave.wait()

    async def leave(self) -> None:
        self._leave.set()
        await self.task
        await turns()


async def turns(count: int = 10) -> None:
    """Let the event loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


async def refused(work: Coroutine[object, object, None]) -> OverloadedError:
    with pytest.raises(OverloadedError) as caught:
        await work
    return caught.value


async def enter_and_leave(door: Admission) -> None:
    async with door.slot():
        pass


def door_of(max_running: int, max_queue: int = 100, queue_timeout_s: float = 5.0) -> Admission:
    return Admission(max_running, max_queue, queue_timeout_s)


async def test_as_many_run_as_may_and_the_rest_wait() -> None:
    door = door_of(2)
    guests = [Guest(door) for _ in range(5)]
    await turns()
    assert [guest.inside for guest in guests] == [True, True, False, False, False]
    assert (door.running, door.waiting) == (2, 3)
    for guest in guests:
        await guest.leave()
    assert (door.running, door.waiting) == (0, 0)


async def test_first_come_first_served() -> None:
    door = door_of(1)
    entered: list[str] = []
    guests = []
    for name in "abcde":
        guests.append(Guest(door, name, entered))
        await turns()
    for guest in guests:
        await guest.leave()
    assert entered == list("abcde")


async def test_a_newcomer_does_not_overtake_who_was_just_given_the_slot() -> None:
    door = door_of(1)
    holder, waiter = Guest(door), Guest(door)
    await turns()
    holder._leave.set()
    await holder.task  # the slot is the waiter's now, who has not yet woken
    newcomer = Guest(door)
    await turns()
    assert (waiter.inside, newcomer.inside, door.running, door.waiting) == (True, False, 1, 1)
    await waiter.leave()
    await newcomer.leave()


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    door = door_of(1, max_queue=1)
    holder, waiter = Guest(door), Guest(door)
    await turns()
    error = await asyncio.wait_for(refused(enter_and_leave(door)), 0.5)
    assert error.retry_after_s > 0
    assert (error.status, error.code) == (429, "overloaded")
    assert (door.running, door.waiting) == (1, 1)
    await holder.leave()
    await waiter.leave()


async def test_without_a_queue_nobody_waits() -> None:
    door = door_of(1, max_queue=0)
    holder = Guest(door)
    await turns()
    await refused(enter_and_leave(door))
    await holder.leave()
    await enter_and_leave(door)


async def test_who_waits_too_long_is_refused_and_its_place_is_free() -> None:
    door = door_of(1, max_queue=1, queue_timeout_s=0.02)
    holder = Guest(door)
    await turns()
    error = await refused(enter_and_leave(door))
    assert "0.02 s" in error.message
    assert (door.running, door.waiting) == (1, 0)
    await holder.leave()
    assert door.running == 0


async def test_the_wait_does_not_count_once_inside() -> None:
    door = door_of(1, queue_timeout_s=0.02)
    holder, waiter = Guest(door), Guest(door)
    await turns()
    await holder.leave()
    await asyncio.sleep(0.05)
    assert waiter.inside
    assert not waiter.task.done()
    await waiter.leave()


async def test_a_cancelled_waiter_is_passed_over() -> None:
    door = door_of(1)
    holder, cancelled, last = Guest(door), Guest(door), Guest(door)
    await turns()
    cancelled.task.cancel()
    await asyncio.gather(cancelled.task, return_exceptions=True)
    assert door.waiting == 1
    await holder.leave()
    assert (cancelled.inside, last.inside) == (False, True)
    await last.leave()
    assert (door.running, door.waiting) == (0, 0)


@pytest.mark.parametrize("turns_between", range(8))
async def test_a_cancellation_in_the_moment_of_handover_is_not_lost_and_neither_is_the_slot(turns_between: int) -> None:
    """However many turns of the event loop lie between the handover and the cancellation."""
    door = door_of(1)
    holder, cancelled, last = Guest(door), Guest(door), Guest(door)
    await turns()
    holder._leave.set()
    await holder.task
    await turns(turns_between)
    cancelled.task.cancel()
    await turns()
    assert cancelled.task.cancelled()
    assert last.inside
    assert (door.running, door.waiting) == (1, 0)
    await last.leave()
    assert door.running == 0


@pytest.mark.parametrize("turns_between", range(4))
async def test_a_slot_handed_over_as_the_wait_ends_is_either_used_or_given_back(turns_between: int) -> None:
    door = door_of(1, queue_timeout_s=0.02)
    holder, waiter = Guest(door), Guest(door)
    await turns()
    waited = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() < waited + 0.02:  # the loop stands still until the time is over
        pass
    await turns(turns_between)
    holder._leave.set()
    await turns()
    if waiter.inside:
        await waiter.leave()
    else:
        await refused(waiter.task)
    assert (door.running, door.waiting) == (0, 0)


async def test_a_failure_inside_frees_the_slot() -> None:
    door = door_of(1)

    async def fail() -> None:
        async with door.slot():
            raise RuntimeError("as it happens")

    for _ in range(3):
        with pytest.raises(RuntimeError, match="as it happens"):
            await fail()
    assert door.running == 0


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_a_crowd_does_the_bound_holds_and_everything_comes_back(seed: int) -> None:
    chance = random.Random(seed)
    door = door_of(3, max_queue=20, queue_timeout_s=0.02)
    most = 0

    async def visit() -> None:
        nonlocal most
        async with door.slot():
            most = max(most, door.running)
            await asyncio.sleep(chance.choice([0, 0, 0.001, 0.005]))
            if chance.random() < 0.2:
                raise RuntimeError

    tasks = []
    for _ in range(150):
        tasks.append(asyncio.create_task(visit()))
        await turns(chance.choice([0, 1, 2]))
        if chance.random() < 0.4:
            chance.choice(tasks).cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 3
    assert (door.running, door.waiting) == (0, 0)
    assert {type(result) for result in ended} <= {
        type(None), OverloadedError, RuntimeError, asyncio.CancelledError,
    }  # fmt: skip
    await enter_and_leave(door)
