"""When a soak passes, by made-up samples; ``bench soak`` measures a real server."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from expert_router.errors import EngineError
from expert_router.evaluation.growth import growth_of, theil_sen
from expert_router.evaluation.soak import Footprint, Soak

IDLE = Footprint(0.0, 500_000_000, 3, 20, 60, 9, 6, 0, 0, 0)


def soaked(grows: float, *, after: Footprint = IDLE, spikes: bool = False) -> Soak:
    """Half an hour in which memory grows by a share of itself, under noise of a percent."""
    chance = random.Random(1)
    samples = []
    for second in range(1800):
        memory = IDLE.memory_bytes * (1 + grows * second / 1800) * chance.uniform(0.99, 1.01)
        spike = 2 if spikes and second % 10 == 0 else 1
        samples.append(replace(IDLE, requests=8 * second, memory_bytes=int(memory * spike)))
    return Soak(samples, before=IDLE, after=after)


@pytest.mark.parametrize("spikes", [False, True])
@pytest.mark.parametrize("grows", [-0.1, 0.0, 0.03])
def test_memory_that_is_flat_passes_whatever_single_samples_say(grows: float, spikes: bool) -> None:
    assert soaked(grows, spikes=spikes).complaints() == []


@pytest.mark.parametrize("spikes", [False, True])
def test_memory_that_grows_is_told_with_how_much(spikes: bool) -> None:
    (complaint,) = soaked(0.08, spikes=spikes).complaints()
    assert "memory grew by" in complaint
    assert soaked(0.08, spikes=spikes).growth.share == pytest.approx(0.08, abs=0.01)


@pytest.mark.parametrize(
    ("after", "complaint"),
    [
        (replace(IDLE, running=1), "1 slots are taken though nobody asks"),
        (replace(IDLE, engine=2), "2 slots are taken though nobody asks"),
        (replace(IDLE, sockets=12), "12 sockets where there were 9"),
        (replace(IDLE, tasks=7), "7 tasks where there were 6"),
    ],
)
def test_what_is_left_behind_is_named(after: Footprint, complaint: str) -> None:
    assert soaked(0.0, after=after).complaints() == [complaint]
    fewer = replace(IDLE, sockets=4, tasks=2)
    assert soaked(0.0, after=fewer).complaints() == []


def test_a_process_that_grows_is_named_though_the_others_hide_it() -> None:
    """A twentieth of all memory is half of the server's."""
    result = soaked(0.0)
    server, model = 10, 11
    result.samples = [
        replace(each, pid=server, by_process={server: 50_000_000 + 1500 * each.requests, model: 450_000_000})
        for each in result.samples
    ]
    assert [growth.name for growth in result.growths()] == ["all processes", "server", "model's process 11"]
    (complaint,) = result.complaints()
    assert complaint.startswith("server: memory grew by 35")
    assert "+1,500 in the second: on and on" in complaint


def test_a_process_that_was_there_for_a_moment_is_not_judged() -> None:
    result = soaked(0.0)
    result.samples[:9] = [
        replace(each, by_process={12: 1000 * number}) for number, each in enumerate(result.samples[:9])
    ]
    assert [growth.name for growth in result.growths()] == ["all processes"]


def test_what_fills_up_is_told_from_what_grows_on() -> None:
    requests = list(range(0, 1000, 10))
    fills = [10_000_000 + min(each, 400) * 10_000 for each in requests]
    leaks = [10_000_000 + each * 4_000 for each in requests]
    flat = [10_000_000 + each for each in requests]
    found = [growth_of("", requests, memory) for memory in (fills, leaks, flat)]
    assert [growth.verdict for growth in found] == ["fills up", "grows on", "flat"]
    assert [growth.second_half for growth in found] == pytest.approx([0, 4000, 1])


def test_a_request_that_ended_otherwise_than_it_should_is_named() -> None:
    result = soaked(0.0)
    result.unexpected["whole"] = "500"
    assert result.complaints() == ["whole: 500"]


def test_a_run_that_was_broken_off_says_nothing() -> None:
    with pytest.raises(EngineError, match="not measured to its end"):
        Soak(before=IDLE).complaints()


def test_the_slope_is_that_of_the_line_though_a_quarter_of_the_points_lie() -> None:
    xs = [float(x) for x in range(100)]
    ys = [3 * x + 7 if x % 4 else 1e6 for x in xs]
    assert theil_sen(xs, ys) == pytest.approx(3, rel=0.05)
    assert theil_sen([1.0], [2.0]) == 0
