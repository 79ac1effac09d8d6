from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from expert_router.decision_log import LoggedDecision
from expert_router.errors import DataError
from expert_router.evaluation.replay import Changed, replay
from expert_router.types import Decision, Feedback

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_router.types import DecisionKind


def logged(
    question: str, *experts: str, kind: DecisionKind = "single", feedback: Feedback | None = None
) -> LoggedDecision:
    forced = experts[0] if kind == "forced" else None
    return LoggedDecision(
        question, "", question, ("before",), "old", "1", None, kind, experts, forced, {}, feedback, feedback and "now"
    )


def decide(question: str, history: Sequence[str]) -> Decision:
    """The question names the experts: sleep, cars, both, or nobody."""
    assert history == ("before",)
    experts = tuple(name for name in ("sleep", "cars") if name in question)
    kinds: tuple[DecisionKind, ...] = ("general", "single", "several")
    return Decision(kinds[len(experts)], experts, None, None, "")


def test_the_same_decision_is_the_same_kind_with_the_same_experts_in_any_order() -> None:
    found = replay(
        [
            logged("sleep?", "sleep"),
            logged("cars?", "sleep"),
            logged("sleep and cars?", "cars", "sleep", kind="several"),
            logged("bread?", kind="general"),
            logged("bread!", kind="refused"),
        ],
        decide,
    )
    assert {kind: (same.value, same.n) for kind, same in found.kinds.items()} == {
        "general": (1.0, 1),
        "refused": (0.0, 1),
        "several": (1.0, 1),
        "single": (0.5, 2),
    }
    assert (found.same.value, found.same.n) == (0.6, 5)
    assert found.changed == [
        Changed("cars?", "single: sleep", "single: cars", None),
        Changed("bread!", "refused", "general", None),
    ]


def test_decisions_that_the_request_named_are_left_out() -> None:
    found = replay([logged("sleep?", "sleep"), logged("sleep?", "cars", kind="forced")], decide)
    assert (found.same.n, found.named, found.changed) == (1, 1, [])
    with pytest.raises(DataError, match="named by its request"):
        replay([logged("sleep?", "cars", kind="forced")], decide)


def test_feedback_judges_what_was_decided_and_what_is_now_on_the_same_questions() -> None:
    found = replay(
        [
            logged("sleep 1?", "sleep", feedback=Feedback("up")),  # right, right
            logged("cars 1?", "sleep", feedback=Feedback("down", ("cars",))),  # wrong, right
            logged("cars 2?", "sleep", feedback=Feedback(None, ("cars",))),  # wrong, right
            logged("sleep 2?", "cars", feedback=Feedback("up")),  # right, wrong
            logged("sleep 3?", "sleep", feedback=Feedback(None, ())),  # wrong, wrong
            logged("sleep 4?", "sleep", feedback=Feedback("down")),  # wrong, and so it still is
            logged("sleep 5?", "cars", feedback=Feedback("down")),  # wrong then, open now
            logged("sleep 6?", "sleep", "cars", kind="clarify", feedback=Feedback("up")),  # says nothing
            logged("sleep 7?", "sleep"),
        ],
        decide,
    )
    judged = found.judged
    assert judged.logged is not None
    assert judged.now is not None
    assert judged.difference is not None
    assert (judged.logged.n, judged.now.n, judged.open) == (6, 6, 1)
    assert judged.logged.value == pytest.approx(2 / 6)
    assert judged.now.value == pytest.approx(3 / 6)
    assert judged.difference.value == pytest.approx(1 / 6)
    assert judged.difference.low < 0 < judged.difference.high
    assert {change.question: change.right for change in found.changed} == {
        "cars 1?": True,
        "cars 2?": True,
        "sleep 2?": False,
        "sleep 5?": None,
        "sleep 6?": None,
    }


def test_a_confirmed_general_answer_needs_nobody() -> None:
    found = replay([logged("bread?", kind="general", feedback=Feedback("up"))], decide)
    assert found.judged.now is not None
    assert found.judged.now.value == 1.0


def test_without_feedback_nothing_is_judged() -> None:
    judged = replay([logged("sleep?", "sleep")], decide).judged
    assert (judged.logged, judged.now, judged.difference, judged.open) == (None, None, None, 0)
