"""What is measured of leavings, on the echo engine behind a door of one, without a server."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.errors import EngineError
from expert_router.evaluation.leaving import POINTS, Held, measure_leaving
from expert_router.types import ChatRequest, Message
from support import build

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from expert_router.evaluation.leaving import Leaving, Visit
    from expert_router.serving.dispatcher import Dispatcher


def of(dispatcher: Dispatcher) -> tuple[Visit, Callable[[], Held]]:
    async def visit(question: str) -> AsyncGenerator[str]:
        async for event in dispatcher.stream(ChatRequest((Message("user", question),), "sleep")):
            if event.text:
                yield event.text

    door = dispatcher.admission
    return visit, lambda: Held.of(dispatcher.engine.status(), door.running, door.waiting)


async def leavings(script: EchoScript, *, streams: bool = True) -> list[Leaving]:
    numbers = itertools.count()
    dispatcher = build(EchoEngine(script), max_running=1)
    visit, held = of(dispatcher)
    return await measure_leaving("here", visit, held, lambda: f"Q{next(numbers)}", times=3, streams=streams)


@pytest.mark.parametrize("streams", [False, True])
async def test_each_point_is_left_as_often_as_asked_and_the_engine_says_so_too(streams: bool) -> None:
    results = await leavings(EchoScript(first_token_delay_s=0.02, token_delay_s=5), streams=streams)
    assert [(each.point, each.times, each.cancelled) for each in results] == [
        ("queued", 3, 0),
        ("prompt", 3, 3),
        ("answer", 3, 3),
    ]
    assert tuple(each.point for each in results) == POINTS
    for each in results:
        assert 0 < each.p50_ms <= each.p95_ms <= each.worst_ms


async def test_an_answer_that_is_over_before_it_is_left_is_not_measured() -> None:
    with pytest.raises(EngineError, match="over before"):
        await leavings(EchoScript())


def test_an_engine_of_several_models_holds_what_they_hold_together() -> None:
    models = {"base": {"running": 1, "cancelled": 2}, "adapted": {"running": 2, "cancelled": 3}}
    assert Held.of({"models": models, "loading": [], "cache": {"hits": 9}}, 3, 4) == Held(3, 5, 3, 4)
