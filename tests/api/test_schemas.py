from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from expert_router.api.deps import Caller
from expert_router.api.schemas import ChatCompletionRequest
from expert_router.errors import InvalidRequestError
from expert_router.types import ChatRequest, GenerationParams, Message
from support import chat_body


def parsed(default_max_tokens: int = 256, **changes: Any) -> ChatRequest:
    return ChatCompletionRequest.model_validate(chat_body("Hi", **changes)).to_request(default_max_tokens, Caller())


def test_what_is_left_out_is_auto_greedy_and_the_servers_limit() -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    request = ChatCompletionRequest.model_validate(body).to_request(99, Caller())
    assert request == ChatRequest((Message("user", "Hi"),), "auto", GenerationParams(max_tokens=99))
    assert request.params.temperature == 0.0


def test_every_parameter_reaches_the_engines_parameters() -> None:
    sampling = {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 3, "ignore_eos": True}
    request = parsed(**sampling, stop=["END", "\n\n"])
    assert request.params == GenerationParams(**sampling, stop=("END", "\n\n"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limits", "max_tokens"),
    [({}, 256), ({"max_tokens": 5}, 5), ({"max_completion_tokens": 6}, 6),
     ({"max_tokens": 5, "max_completion_tokens": 6}, 6), ({"max_tokens": 5, "max_completion_tokens": None}, 5)],
)  # fmt: skip
def test_the_newer_name_of_the_limit_wins(limits: dict[str, Any], max_tokens: int) -> None:
    assert parsed(**limits).params.max_tokens == max_tokens


@pytest.mark.parametrize(
    ("stop", "taken"), [(None, ()), ([], ()), ("END", ("END",)), (["a", "b", "c", "d"], ("a", "b", "c", "d"))]
)
def test_stop_is_one_sequence_or_up_to_four(stop: Any, taken: tuple[str, ...]) -> None:
    assert parsed(stop=stop).params.stop == taken


def test_a_fifth_stop_sequence_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="At most 4") as caught:
        parsed(stop=["a", "b", "c", "d", "e"])
    assert caught.value.param == "stop"


def test_a_developers_message_is_a_system_message_and_parts_are_one_text() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    assert parsed(messages=messages).messages == (Message("system", "Be brief."), Message("user", "ab"))


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 0}, {"temperature": 2}, {"top_p": 1}, {"seed": 0}, {"seed": 2**63 - 1}, {"max_tokens": 1},
     {"temperature": 1}, {"top_p": 0.01}],
)  # fmt: skip
def test_the_ends_of_the_ranges_are_allowed_and_whole_numbers_are_numbers(changes: dict[str, Any]) -> None:
    assert parsed(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"temperature": -0.1}, {"temperature": 2.1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1},
     {"seed": -1}, {"seed": 2**63}, {"max_tokens": 0}, {"max_completion_tokens": -1}],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        parsed(**changes)
    assert caught.value.errors()[0]["loc"] == tuple(changes)
