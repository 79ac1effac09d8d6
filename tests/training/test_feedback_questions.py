from __future__ import annotations

from typing import TYPE_CHECKING

from expert_router.data.labelled import LabelledQuestion
from expert_router.decision_log import LoggedDecision
from expert_router.training.feedback import (
    ALREADY_KNOWN,
    NOTHING_ALONE,
    OTHERS_TEST,
    OVERRIDE_REPEATS,
    UNKNOWN,
    FeedbackData,
    feedback_data,
)
from expert_router.types import Feedback

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_router.types import DecisionKind

EXPERTS = ("sleep", "cars")
CARS, SLEEP = Feedback("down", ("cars",)), Feedback(None, ("sleep",))
TRAIN = [LabelledQuestion("What is a gearbox?", frozenset({"cars"}), "cars")]
TEST = [LabelledQuestion("What is a nap?", frozenset({"sleep"}), "sleep")]


def logged(
    question: str,
    feedback: Feedback | None,
    *,
    kind: DecisionKind = "single",
    experts: tuple[str, ...] = ("sleep",),
    history: tuple[str, ...] = (),
    rated: str = "2026-01-01",
) -> LoggedDecision:
    return LoggedDecision(
        question, "", question, history, "old", "1", None, kind, experts, None, {}, feedback, feedback and rated
    )


def data_of(*decisions: LoggedDecision) -> FeedbackData:
    return feedback_data(decisions, EXPERTS, TRAIN, TEST)


def texts(data: FeedbackData) -> dict[str, set[str]]:
    return {each.text: set(each.experts) for each in [*data.learnt, *data.kept_out]}


def test_overrides_and_confirmed_single_decisions_teach_and_nothing_else_does() -> None:
    data = data_of(
        logged("Is a van a car?", CARS),
        logged("Is bread a car?", Feedback(None, ())),
        logged("Do vans sleep?", Feedback("up")),
        logged("Does a driver doze?", Feedback("down")),
        logged("Do drivers nap in vans?", Feedback("up"), kind="several", experts=("sleep", "cars")),
        logged("Do vans nap?", Feedback(None, ("sleep", "cars"))),
        logged("Who knows?", None),
    )
    assert texts(data) == {
        "Is a van a car?": {"cars"},
        "Is bread a car?": set(),
        "Do vans sleep?": {"sleep"},
        "Do vans nap?": {"sleep", "cars"},
    }
    assert not data.left_out


def test_of_the_same_question_what_was_said_last_counts_however_it_was_typed() -> None:
    data = data_of(
        logged("is a VAN a car", SLEEP, rated="2026-03-01"),
        logged("Is a van a car?", CARS, rated="2026-02-01"),
        logged("Hello! Is a van a car?", CARS, rated="2026-01-01"),
    )
    assert texts(data) == {"is a VAN a car": {"sleep"}}


def test_a_test_or_calibration_question_is_never_learnt_however_it_was_typed() -> None:
    data = data_of(logged("what is a NAP", CARS), logged("Hi, what is a nap? Thanks!", CARS))
    assert texts(data) == {}
    assert data.left_out == {OTHERS_TEST: 1}


def test_what_the_router_has_learnt_already_is_left_out_and_what_it_learnt_otherwise_gives_way() -> None:
    assert data_of(logged("What is a gearbox?", CARS)).left_out == {ALREADY_KNOWN: 1}
    data = data_of(logged("what is a gearbox", SLEEP))
    assert [each.text for each in data.learnt] == ["what is a gearbox"]  # never kept out: it would prove nothing
    others = [LabelledQuestion("What is a piston?", frozenset({"cars"}), "cars")]
    added = data.added_to([*TRAIN, *others])
    assert [(each.query, set(each.experts)) for each in added] == [
        ("What is a piston?", {"cars"}),
        *[("what is a gearbox", {"sleep"})] * OVERRIDE_REPEATS,
    ]


def test_an_override_weighs_more_than_a_confirmation() -> None:
    data = data_of(*[logged(f"Do vans number {n} sleep?", Feedback("up")) for n in range(9)], logged("A van?", CARS))
    both = FeedbackData([*data.learnt, *data.kept_out], [], data.left_out)
    added = [example.query for example in both.added_to(TRAIN)]
    assert [added.count("A van?"), added.count("Do vans number 3 sleep?"), len(added)] == [OVERRIDE_REPEATS, 1, 20]


def test_a_follow_up_is_learnt_with_what_it_is_about_or_not_at_all() -> None:
    before = ("Why did the Edsel fail?", "Thanks!")
    data = data_of(
        logged("And when was it sold?", CARS, history=before),
        logged("And why is that?", CARS),
        logged("Thank you!", CARS, history=before),
    )
    assert texts(data) == {"Why did the Edsel fail? And when was it sold?": {"cars"}}
    (asked,) = [*data.learnt, *data.kept_out]
    assert (asked.question, asked.history) == ("And when was it sold?", before)
    assert data.left_out[NOTHING_ALONE] >= 1


def test_an_expert_that_is_gone_is_left_out() -> None:
    assert data_of(logged("Do birds sing?", Feedback(None, ("birds",)))).left_out == {UNKNOWN: 1}


def test_the_same_fifth_is_kept_out_every_time_and_never_learnt() -> None:
    decisions = [logged(f"Is van number {n} a car?", CARS) for n in range(400)]

    def kept(chosen: Sequence[LoggedDecision]) -> set[str]:
        data = data_of(*chosen)
        learnt, out = ({each.text for each in group} for group in (data.learnt, data.kept_out))
        assert not learnt & out
        assert len(learnt | out) == len(chosen)
        return out

    every = kept(decisions)
    assert 50 < len(every) < 110
    assert kept(decisions[::-1]) == every
    assert kept(decisions[:100]) == {text for text in every if int(text.split()[3]) < 100}
