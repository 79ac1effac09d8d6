"""What shapes an answer is in its key: a component that is left out would be a wrong answer one day."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from typing import Any

import pytest

from expert_router.caching.key import answer_key
from expert_router.trace_context import TraceContext
from expert_router.types import GenerationParams, Message, Ticket

MESSAGES = (Message("system", "You know sleep."), Message("user", "What is REM sleep?"))
ASKED: dict[str, Any] = {
    "namespace": "",
    "client": "",
    "engine": "openvino",
    "identity": "weights 1",
    "expert": "sleep",
    "messages": MESSAGES,
    "params": GenerationParams(),
}
OTHER_PARAMS = {
    "max_tokens": 255,
    "temperature": 0.1,
    "top_p": 0.9,
    "seed": 0,
    "stop": ("\n",),
    "begin": "I don't know",
    "probability": True,
    "ignore_eos": True,
}
SHAPE_NOTHING = {"cache", "ticket", "trace"}


def key(**changes: Any) -> str:
    return answer_key(**{**ASKED, **changes})


def test_the_same_question_has_the_same_key() -> None:
    again = {**ASKED, "messages": [Message(m.role, m.content) for m in MESSAGES], "params": GenerationParams()}
    assert answer_key(**again) == key()
    assert len(key()) == 64


@pytest.mark.parametrize(
    "changes",
    [
        {"namespace": "other"},
        {"client": "laura"},
        {"engine": "echo"},
        {"identity": "weights 2"},
        {"expert": "cars"},
        {"messages": MESSAGES[1:]},
        {"messages": MESSAGES[::-1]},
        {"messages": (*MESSAGES, Message("user", ""))},
        {"messages": (replace(MESSAGES[0], content="You know sleep. "), MESSAGES[1])},
        {"messages": (MESSAGES[0], replace(MESSAGES[1], role="assistant"))},
        {"messages": (MESSAGES[0], replace(MESSAGES[1], content="What is rem sleep?"))},
    ],
    ids=str,
)
def test_each_component_changes_the_key(changes: dict[str, Any]) -> None:
    assert key(**changes) != key()


@pytest.mark.parametrize("name", [field.name for field in fields(GenerationParams) if field.name not in SHAPE_NOTHING])
def test_each_parameter_changes_the_key_also_one_that_is_yet_to_come(name: str) -> None:
    assert key(params=replace(GenerationParams(), **{name: OTHER_PARAMS[name]})) != key()


def test_what_the_request_wants_of_kept_answers_and_whose_turn_it_is_do_not() -> None:
    shapes_nothing = {"cache": "renew", "ticket": Ticket("laura", 7.0), "trace": TraceContext("a" * 32, "b" * 16)}
    assert shapes_nothing.keys() == SHAPE_NOTHING
    assert key(params=GenerationParams(**shapes_nothing)) == key()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"namespace": "ab", "engine": "c"}, {"namespace": "a", "engine": "bc"}),
        ({"namespace": "ab", "client": "c"}, {"namespace": "a", "client": "bc"}),
        ({"params": GenerationParams(stop=("a", "b"))}, {"params": GenerationParams(stop=("ab",))}),
        ({"params": GenerationParams(stop=())}, {"params": GenerationParams(stop=("",))}),
        ({"params": GenerationParams(seed=None)}, {"params": GenerationParams(seed=0)}),
        ({"messages": (Message("user", "\ud83d\ude00"),)}, {"messages": (Message("user", "\U0001f600"),)}),
        ({"messages": (Message("user", "é"),)}, {"messages": (Message("user", "e\u0301"),)}),
        ({"messages": (Message("user", 'a","b'),)}, {"messages": (Message("user", "a"), Message("user", "b"))}),
    ],
)
def test_what_only_looks_alike_has_another_key(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert key(**one) != key(**other)


def test_a_new_day_has_new_keys_for_templates_may_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    today = key()
    monkeypatch.setenv("TZ", "Etc/GMT+12")
    time.tzset()
    west = key()
    monkeypatch.setenv("TZ", "Etc/GMT-14")  # always another day than twelve hours west of Greenwich
    time.tzset()
    east = key()
    monkeypatch.undo()
    time.tzset()
    assert west != east
    assert today in {west, east, key()}
