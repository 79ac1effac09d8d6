"""An answer is given again to the same question in other words: with its sources, and nowhere it does not belong."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from expert_router.caching.similar import SimilarAnswers
from expert_router.engines.echo import EchoEngine
from expert_router.knowledge.grounding import UNKNOWN
from expert_router.serving.build import build_repeating
from expert_router.serving.parts import Parts
from expert_router.serving.repeating import LONGEST, Repeating
from expert_router.settings import Settings
from expert_router.types import ChatRequest, Chunk, GenerationParams, Message, Usage
from support import EXPERTS, NAPS, STAGES, FixedKnowledge, WordEncoder, build, chat_body, events, serve

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from expert_router.serving.dispatcher import Dispatcher
    from expert_router.types import Answer, Expert

FIRST, AGAIN = "Who discovered melatonin?", "By whom was melatonin discovered?"


class UnknowingEngine(EchoEngine):
    async def stream(self, *_: object) -> AsyncGenerator[Chunk]:
        yield Chunk(UNKNOWN, "stop", Usage(1, 1))


class NamelessEngine(EchoEngine):
    """Cannot tell its weights."""

    def identity(self, expert: Expert) -> None:  # type: ignore[override]  # noqa: ARG002
        return None


def repeating_dispatcher(engine: EchoEngine | None = None, knowledge: FixedKnowledge | None = None) -> Dispatcher:
    dispatcher = build(engine or EchoEngine(), knowledge=knowledge)
    dispatcher.repeating = Repeating(SimilarAnswers(WordEncoder(), similarity=0.2, max_answers=10, ttl_s=60))
    return dispatcher


def asked(question: str = FIRST, *before: Message, model: str = "sleep", **params: object) -> ChatRequest:
    return ChatRequest((*before, Message("user", question)), model, GenerationParams(**params))  # type: ignore[arg-type]


async def answers(dispatcher: Dispatcher, *requests: ChatRequest) -> list[Answer]:
    return [await dispatcher.ask(request) for request in requests]


async def test_it_is_given_again_with_the_sources_it_was_made_from() -> None:
    knowledge = FixedKnowledge({"sleep": (STAGES,)})
    dispatcher = repeating_dispatcher(knowledge=knowledge)
    (first,) = await answers(dispatcher, asked())
    knowledge.passages = {"sleep": (NAPS,)}
    again, anew = await answers(dispatcher, asked(AGAIN), asked(AGAIN, cache="renew"))
    assert (again.text, again.sources, again.usage) == (first.text, first.sources, first.usage)
    assert (again.cache, again.similar_to) == ({"sleep": "similar"}, {"sleep": FIRST})
    assert again.query == AGAIN
    assert [hit.passage for hit in anew.sources[0].found] == [NAPS]
    assert (first.similar_to, anew.similar_to) == ({}, {})


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (asked(), asked(AGAIN, model="cars")),
        (asked(), asked(AGAIN, max_tokens=7)),
        (asked(), asked(AGAIN, temperature=0.5)),
        (asked(temperature=0.5), asked(AGAIN, temperature=0.5)),
        (asked(), asked(AGAIN, Message("system", "Be brief."))),
        (asked(), asked(AGAIN, Message("user", "Hello."), Message("assistant", "Hello."))),
        (asked(FIRST, Message("user", "Hello."), Message("assistant", "Hello.")), asked(AGAIN)),
        (asked(), asked(AGAIN, cache="bypass")),
        (asked(cache="bypass"), asked(AGAIN)),
        (asked(), asked("Who discovered orexin?")),
        (asked(FIRST + " " * LONGEST), asked(AGAIN)),
    ],
)
async def test_it_never_leaves_where_it_belongs(first: ChatRequest, again: ChatRequest) -> None:
    _, answer = await answers(repeating_dispatcher(), first, again)
    assert answer.similar_to == {}


async def test_other_experts_of_the_name_answer_anew() -> None:
    dispatcher = repeating_dispatcher()
    await answers(dispatcher, asked())
    dispatcher.deployed = replace(dispatcher.deployed, version=dispatcher.deployed.version + 1)
    (answer,) = await answers(dispatcher, asked(AGAIN))
    assert answer.similar_to == {}


@pytest.mark.parametrize("engine", [UnknowingEngine(), NamelessEngine()])
async def test_refusals_and_answers_of_unknown_weights_are_not_kept(engine: EchoEngine) -> None:
    _, answer = await answers(repeating_dispatcher(engine), asked(), asked(AGAIN))
    assert answer.similar_to == {}


def test_over_http_the_earlier_question_is_shown_whole_and_streamed() -> None:
    with serve(EchoEngine(), dispatcher=repeating_dispatcher()) as server:
        first = server.http.post("/v1/chat/completions", json=chat_body(FIRST)).json()
        again = server.http.post("/v1/chat/completions", json=chat_body(AGAIN)).json()
        streamed = server.http.post("/v1/chat/completions", json=chat_body(AGAIN, stream=True))
        health = server.http.get("/health/ready").json()
    assert "similar_to" not in first["expert_router"]
    assert again["choices"] == first["choices"]
    shown = {"cache": {"sleep": "similar"}, "similar_to": {"sleep": FIRST}}
    *chunks, last, _ = events(streamed.text)
    for about in (again["expert_router"], last["expert_router"]):
        assert {name: about[name] for name in shown} == shown
    pieces = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    assert [piece for piece in pieces if piece][:3] == ["[Sleep", " science]", " You"]
    assert health["similar_answers"]["hits"] == 2


def test_it_is_off_unless_it_is_asked_for() -> None:
    assert Settings().cache.semantic is False
    assert build_repeating(Parts(Settings(), EXPERTS, progress=False)) is None
