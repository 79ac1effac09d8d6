from __future__ import annotations

import asyncio
import random
import time
from contextlib import ExitStack, suppress
from math import inf
from typing import TYPE_CHECKING

import pytest

from expert_router.errors import OverloadedError
from expert_router.serving.admission import Admission
from expert_router.serving.drain_rate import DrainRate
from expert_router.types import Ticket
from support import until

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Guest:
    """Someone who takes a slot and stays until told to leave."""

    def __init__(self, door: Admission, name: str = "", entered: list[str] | None = None, client: str = "") -> None:
        self.inside = False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._visit(door, name, entered, client))

    async def _visit(self, door: Admission, name: str, entered: list[str] | None, client: str) -> None:
        async with door.slot(ticket=Ticket(client)):
            self.inside = True
            if entered is not None:
                entered.append(name)
            await self._leave.wait()

    async def leave(self) -> None:
        self._leave.set()
        await self.task
        await turns()


async def all_leave(*guests: Guest) -> None:
    """In whatever order they get in."""
    for guest in guests:
        guest._leave.set()
    await asyncio.gather(*(guest.task for guest in guests))


async def turns(count: int = 10) -> None:
    """Let the event loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


async def refused(work: Coroutine[object, object, None]) -> OverloadedError:
    with pytest.raises(OverloadedError) as caught:
        await work
    return caught.value


async def pass_through(door: Admission, ticket: Ticket) -> None:
    async with door.slot(ticket=ticket):
        pass


async def enter_and_leave(door: Admission, deadline: float | None = None) -> None:
    await pass_through(door, Ticket(deadline=inf if deadline is None else deadline))


async def enter_in(door: Admission, expected_wait_s: float) -> None:
    await pass_through(door, Ticket(expected_wait_s=expected_wait_s))


def door_of(
    max_running: int,
    max_queue: int = 100,
    queue_timeout_s: float = 5.0,
    client_share: float = 1.0,
    max_prefills: float = inf,
) -> Admission:
    return Admission(max_running, max_queue, queue_timeout_s, client_share, max_prefills=max_prefills)


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


# Between clients


async def test_one_client_with_many_waiting_does_not_delay_anothers_first() -> None:
    door = door_of(1)
    entered: list[str] = []
    guests = [Guest(door, f"A{number}", entered, "A") for number in range(5)]
    await turns()
    guests.append(Guest(door, "B0", entered, "B"))
    await turns()
    for _ in range(6):
        inside = next(guest for guest in guests if guest.inside and not guest.task.done())
        await inside.leave()
    assert entered == ["A0", "A1", "B0", "A2", "A3", "A4"]


@pytest.mark.parametrize(("share", "may_wait"), [(1.0, [8, 0, 0]), (0.5, [4, 2, 1]), (0.2, [2, 2, 1])])
async def test_however_much_clients_ask_there_is_a_place_for_the_next(share: float, may_wait: list[int]) -> None:
    door = door_of(1, max_queue=8, client_share=share)
    holder = Guest(door)
    await turns()
    waiting = []
    for client, places in zip("ABC", may_wait, strict=True):
        guests = [Guest(door, client=client) for _ in range(9)]
        await turns()
        refused_ones = [guest for guest in guests if guest.task.done()]
        assert len(guests) - len(refused_ones) == places
        for guest in refused_ones:
            await refused(guest.task)
        waiting += [guest for guest in guests if not guest.task.done()]
    assert door.waiting == sum(may_wait)
    await all_leave(holder, *waiting)
    assert (door.running, door.waiting) == (0, 0)


# By the measured rate


def drained(*freed_at: float) -> DrainRate:
    """All slots are taken from 0 on, and one comes free and is taken again at each of these seconds."""
    rate = DrainRate()
    rate.begin(0.0)
    for now in freed_at:
        rate.count(now, goes_on=True)
    return rate


def test_the_gap_between_freed_slots_is_right_from_the_first_on_and_follows_a_change() -> None:
    assert drained().gap_s(5.0) is None
    assert drained(2.0).gap_s(2.0) == pytest.approx(2.0)
    steady = drained(*(2.0 * number for number in range(1, 50)))
    assert steady.gap_s(98.0) == pytest.approx(2.0)
    faster = drained(*(2.0 * number for number in range(1, 50)), *(98 + 0.5 * number for number in range(1, 500)))
    assert faster.gap_s(98 + 249.5) == pytest.approx(0.5, rel=0.05)


def test_a_standstill_shows_before_it_is_over() -> None:
    assert drained(2.0, 4.0).gap_s(64.0) > 20


def test_time_in_which_some_slots_were_free_is_not_counted() -> None:
    rate = drained(2.0)
    rate.count(4.0, goes_on=False)
    rate.count(70.0, goes_on=False)  # of several that were free
    rate.begin(100.0)
    assert rate.gap_s(100.0) == pytest.approx(2.0)
    rate.count(102.0, goes_on=True)
    assert rate.gap_s(102.0) == pytest.approx(2.0)


async def door_with_gap(seconds: float, **limits: float) -> tuple[Admission, Guest]:
    """A door of one slot that came free after at least so many seconds, and has been taken for as long again."""
    door = door_of(1, **limits)  # type: ignore[arg-type]
    async with door.slot():
        await asyncio.sleep(seconds)
    holder = Guest(door)
    await asyncio.sleep(seconds)
    return door, holder


async def test_who_would_wait_in_vain_is_refused_at_once_and_who_has_time_waits() -> None:
    door, holder = await door_with_gap(0.05)
    waiter = Guest(door)
    await turns()
    hurried = asyncio.create_task(enter_and_leave(door, time.monotonic() + 0.04))
    await turns()
    assert hurried.done()  # of its own accord: only a few turns of the loop have gone by
    assert "would come free within" in (await refused(hurried)).message
    patient = asyncio.create_task(enter_and_leave(door, time.monotonic() + 60))
    await turns()
    assert door.waiting == 2
    await holder.leave()
    await waiter.leave()
    await patient
    assert (door.running, door.waiting) == (0, 0)


async def test_the_queues_own_time_is_the_deadline_of_who_has_none() -> None:
    door, holder = await door_with_gap(0.05, queue_timeout_s=0.04)
    waiter = asyncio.create_task(enter_and_leave(door))  # nobody is ahead of it: it may try
    await turns()
    assert (door.waiting, waiter.done()) == (1, False)
    assert "would come free" in (await refused(enter_and_leave(door))).message
    assert "came free" in (await refused(waiter)).message
    await holder.leave()


async def test_who_is_let_in_line_stays_though_its_turn_comes_later_than_expected() -> None:
    door, holder = await door_with_gap(0.05)
    waiter = asyncio.create_task(enter_in(door, 0.04))  # nobody is ahead of it
    await turns()
    error = await refused(enter_in(door, 0.04))
    assert "would come free within 0.04 s" in error.message
    patient = asyncio.create_task(enter_in(door, inf))
    await asyncio.sleep(0.05)
    assert (door.waiting, waiter.done()) == (2, False)
    await holder.leave()
    await asyncio.gather(waiter, patient)


async def test_a_burst_waits_until_the_queue_has_stood_for_a_while() -> None:
    door = door_of(1, queue_timeout_s=3600)
    async with door.slot():
        await asyncio.sleep(0.05)
    holder = Guest(door)
    burst = [asyncio.create_task(enter_in(door, 1.0)) for _ in range(50)]
    hurried = asyncio.create_task(enter_in(door, 1e-9))
    await turns()
    assert door.waiting == 50
    await refused(hurried)
    await holder.leave()
    await asyncio.gather(*burst)
    assert (door.running, door.waiting) == (0, 0)


async def test_how_long_one_alone_took_refuses_no_burst_and_says_when_to_come_back() -> None:
    door = door_of(2, max_queue=30, queue_timeout_s=1.4)
    async with door.slot():
        await asyncio.sleep(0.05)  # thirty times that is longer than the queue's time
    holders = [Guest(door), Guest(door)]
    burst = [asyncio.create_task(enter_and_leave(door)) for _ in range(30)]
    await turns()
    assert door.waiting == 30
    error = await refused(enter_and_leave(door))
    assert "too many" in error.message
    assert error.retry_after_s == 2
    await all_leave(*holders)
    await asyncio.gather(*burst)


async def test_before_anything_is_measured_as_many_may_wait_as_may_run() -> None:
    door = door_of(2)
    holders = [Guest(door), Guest(door)]
    await turns()
    tasks = [asyncio.create_task(enter_in(door, 1e-9)) for _ in range(3)]
    await turns()
    assert [task.done() for task in tasks] == [False, False, True]
    patient = asyncio.create_task(enter_in(door, inf))
    await turns()
    assert door.waiting == 3
    await refused(tasks.pop())
    await all_leave(*holders)
    await asyncio.gather(*tasks, patient)


async def test_a_deadline_that_has_passed_is_no_matter_where_a_slot_is_free() -> None:
    door = door_of(1)
    await enter_and_leave(door, time.monotonic() - 1)
    holder = Guest(door)
    await turns()
    await refused(enter_and_leave(door, time.monotonic() - 1))
    await holder.leave()


async def test_come_back_when_the_queue_has_drained_by_the_measured_rate_or_its_time_is_over() -> None:
    unmeasured = door_of(1, max_queue=0, queue_timeout_s=7.0)
    async with unmeasured.slot():
        assert (await refused(enter_and_leave(unmeasured))).retry_after_s == 7
    door, holder = await door_with_gap(0.4, max_queue=4)
    waiting = [Guest(door) for _ in range(4)]
    await turns()
    error = await refused(enter_and_leave(door))
    assert error.retry_after_s >= 2  # five at 0.4 s or more, and at most the queue's 5 s
    assert error.retry_after_s <= 5
    await all_leave(holder, *waiting)


# Before anything is done for a request


def comers(door: Admission, *clients: str) -> tuple[ExitStack, list[Ticket]]:
    """Those for whom a place is held, until the stack is closed; the others were refused."""
    stack, tickets = ExitStack(), []
    for client in clients:
        with ExitStack() as own:
            ticket = own.enter_context(door.request(client))
            with suppress(OverloadedError):
                door.hold_place(ticket)
                tickets.append(ticket)
                stack.push(own.pop_all())
    return stack, tickets


@pytest.mark.parametrize(("running", "held"), [(0, 5), (1, 4), (2, 3)])
async def test_of_many_that_come_at_once_no_more_are_begun_than_may_run_and_wait(running: int, held: int) -> None:
    door = door_of(2, max_queue=3)
    guests = [Guest(door) for _ in range(running)]
    await turns()
    coming, tickets = comers(door, *["A"] * 9)
    assert len(tickets) == held
    await refused(enter_and_leave(door)) if running == 2 else None
    coming.close()
    again, tickets = comers(door, *["A"] * 9)
    assert len(tickets) == held
    again.close()
    await all_leave(*guests)
    assert (door.running, door.waiting) == (0, 0)


async def test_a_place_that_is_held_is_had_once_whoever_came_meanwhile() -> None:
    door = door_of(1, max_queue=1)
    holder = Guest(door)
    await turns()
    coming, (ticket,) = comers(door, "A")
    await refused(enter_and_leave(door))  # it is held, though nobody stands there
    first = asyncio.create_task(pass_through(door, ticket))
    await turns()
    assert door.waiting == 1
    await refused(enter_and_leave(door))
    await holder.leave()
    await first
    coming.close()
    await enter_and_leave(door)


async def test_a_place_that_is_held_is_had_though_slots_come_free_more_slowly_by_then() -> None:
    started = time.monotonic()
    door, holder = await door_with_gap(0.05)
    waiter = Guest(door)
    await turns()
    expected_wait_s = 2 * (time.monotonic() - started)
    with door.request("A", expected_wait_s=expected_wait_s) as ticket:
        door.hold_place(ticket)
        await asyncio.sleep(2 * expected_wait_s)
        await refused(enter_in(door, expected_wait_s))
        run = asyncio.create_task(pass_through(door, ticket))
        await turns()
        assert (door.waiting, run.done()) == (2, False)
        await all_leave(holder, waiter)
        await run


async def test_who_holds_places_leaves_some_for_the_next_client() -> None:
    door = door_of(1, max_queue=8, client_share=0.5)
    holder = Guest(door)
    await turns()
    coming, tickets = comers(door, *"AAAAAAAAABBBBBBBBBCCCC")
    assert [ticket.client for ticket in tickets] == [*"AAAABBC"]
    coming.close()
    await holder.leave()


async def test_by_the_measured_rate_those_that_are_on_their_way_count_too() -> None:
    door, holder = await door_with_gap(0.05)
    coming, _ = comers(door, "A")
    with door.request("A", expected_wait_s=0.04) as hurried, pytest.raises(OverloadedError, match="would come free"):
        door.hold_place(hurried)
    coming.close()
    with door.request("A", expected_wait_s=0.04) as hurried:
        door.hold_place(hurried)
    await holder.leave()


# While prompts are read


class Reader:
    """Someone inside who has no token until told so, and leaves when told."""

    def __init__(self, door: Admission, ticket: Ticket | None = None) -> None:
        self.inside, self._token, self._leave = False, asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._visit(door, ticket or Ticket()))

    async def _visit(self, door: Admission, ticket: Ticket) -> None:
        async with door.slot(ticket=ticket) as has_token:
            self.inside = True
            await self._token.wait()
            has_token()
            has_token()
            await self._leave.wait()

    async def get_token(self) -> None:
        self._token.set()
        await turns()

    async def leave(self) -> None:
        self._leave.set()
        await self.get_token()


async def test_no_more_are_let_in_than_are_read_at_once_and_each_first_token_lets_in_the_next() -> None:
    door = door_of(4, max_prefills=2)
    readers = [Reader(door) for _ in range(7)]
    await turns()
    assert [reader.inside for reader in readers] == [True] * 2 + [False] * 5
    await readers[1].get_token()
    assert (readers[2].inside, readers[3].inside, door.running) == (True, False, 3)
    await readers[0].get_token()
    await readers[2].get_token()  # now all four slots are taken, and one prompt is read
    assert (door.running, door.waiting) == (4, 3)
    await readers[0].leave()
    assert (readers[4].inside, readers[5].inside, door.running) == (True, False, 4)
    for reader in readers:
        await reader.leave()
    assert (door.running, door.waiting) == (0, 0)


async def test_a_run_that_ends_without_a_token_reads_no_more() -> None:
    door = door_of(4, max_prefills=1)
    failing, waiting = Reader(door), Reader(door)
    await turns()
    failing.task.cancel()
    await turns()
    assert (waiting.inside, door.running, door.waiting) == (True, 1, 0)
    await waiting.leave()


@pytest.mark.parametrize("turns_between", range(6))
async def test_a_cancellation_at_handover_gives_back_the_prompts_place_too(turns_between: int) -> None:
    door = door_of(4, max_prefills=1)
    reader, cancelled, last = Reader(door), Reader(door), Reader(door)
    await turns()
    reader._token.set()
    await turns(turns_between)
    cancelled.task.cancel()
    await turns()
    assert (last.inside, door.running) == (True, 2)
    for each in (reader, last):
        await each.leave()
    assert (door.running, door.waiting) == (0, 0)


async def test_who_comes_back_to_its_slot_reads_no_prompt_again() -> None:
    door = door_of(4, max_prefills=1)
    with door.request() as ticket:
        async with door.slot("sleep", ticket, asks_on=True) as has_token:
            has_token()
        reader = Reader(door)
        await turns()
        async with door.slot("sleep", ticket):
            assert (reader.inside, door.running) == (True, 2)
    await reader.leave()
    assert door.running == 0


async def test_an_engine_that_hangs_or_loads_a_model_holds_the_others_up_for_a_while_only() -> None:
    door = Admission(2, 100, 5.0, max_prefills=1, prefill_s=0.02)
    hanging, waiting = Reader(door), Reader(door)
    await turns()
    assert not waiting.inside
    await until(lambda: waiting.inside)
    for reader in (hanging, waiting):
        await reader.leave()
    assert (door.running, door.waiting) == (0, 0)


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_readers_do_both_bounds_hold_and_everything_comes_back(seed: int) -> None:
    chance = random.Random(seed)
    door = door_of(4, max_queue=40, max_prefills=2)
    reading = most_reading = most_running = 0

    async def visit() -> None:
        nonlocal reading, most_reading, most_running
        async with door.slot() as has_token:
            reading += 1
            most_reading, most_running = max(most_reading, reading), max(most_running, door.running)
            try:
                await turns(chance.randrange(5))
                if chance.random() < 0.2:
                    raise RuntimeError
            finally:
                reading -= 1
                has_token()
            await turns(chance.randrange(20))

    tasks = []
    for _ in range(200):
        tasks.append(asyncio.create_task(visit()))
        await turns(chance.randrange(3))
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
    async with asyncio.timeout(60):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert (most_reading, most_running) == (2, 4)
    assert (door.running, door.waiting) == (0, 0)
    await enter_and_leave(door)
