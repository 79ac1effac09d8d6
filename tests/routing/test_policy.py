from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expert_router.routing.policy import Policy, forced
from expert_router.types import GENERAL, Decision, Scores, Thresholds

TITLES = {"sleep": "Sleep science", "cars": "Car history", "smell": "Smell"}
POLICY = Policy(Thresholds(accept=0.6, clarify=0.4), TITLES)
REFUSING = Policy(POLICY.thresholds, TITLES, on_general="refuse")


def decide(sleep: float, cars: float, none: float = 0.3, policy: Policy = POLICY) -> Decision:
    return policy.decide(Scores({"sleep": sleep, "cars": cars}, none))


@pytest.mark.parametrize(
    ("sleep", "cars", "kind", "experts"),
    [
        (0.9, 0.1, "single", ("sleep",)),
        (0.1, 0.9, "single", ("cars",)),
        (0.9, 0.3, "single", ("sleep",)),
        (0.9, 0.5, "clarify", ("sleep", "cars")),  # both are in the prediction set
        (0.8, 0.9, "several", ("cars", "sleep")),
        (0.9, 0.8, "several", ("sleep", "cars")),
        (0.5, 0.45, "clarify", ("sleep", "cars")),
        (0.5, 0.1, "single", ("sleep",)),  # alone in the prediction set
        (0.1, 0.1, "general", ()),
        (0.6, 0.0, "single", ("sleep",)),  # a threshold belongs to what it opens
        (0.5999, 0.4, "clarify", ("sleep", "cars")),
        (0.3999, 0.3999, "general", ()),
        (1.0, 1.0, "several", ("cars", "sleep")),  # equal: by name, so that the same question is always answered alike
        (0.5, 0.5, "clarify", ("cars", "sleep")),
        (0.0, 0.0, "general", ()),
    ],
)
def test_the_scores_decide_who_answers(sleep: float, cars: float, kind: str, experts: tuple[str, ...]) -> None:
    decision = decide(sleep, cars)
    assert (decision.kind, decision.experts) == (kind, experts)


def test_none_of_the_experts_is_an_answer_or_a_refusal_by_configuration() -> None:
    answered, refused = decide(0.1, 0.2), decide(0.1, 0.2, policy=REFUSING)
    assert (answered.kind, refused.kind) == ("general", "refused")
    assert answered.experts == refused.experts == ()
    assert decide(0.9, 0.1, policy=REFUSING).kind == "single"
    assert decide(0.5, 0.5, policy=REFUSING).kind == "clarify"


def test_an_expert_or_none_of_them_is_asked_back_too() -> None:
    decision = decide(0.9, 0.1, none=0.95)
    assert (decision.kind, decision.experts, decision.choices) == ("clarify", ("sleep",), (GENERAL, "sleep"))
    assert decision.reason == "It could be about no expert (95%) or Sleep science (90%): please say which."


def test_two_that_are_needed_answer_whatever_else_may_be_meant() -> None:
    decision = decide(0.9, 0.7, none=0.5)
    assert (decision.kind, decision.choices) == ("several", ())
    assert decision.prediction_set == ("sleep", "cars", GENERAL)


@pytest.mark.parametrize(
    ("scores", "best", "everybody"),
    [
        ((0.5, 0.45, 0.1), ("single", ("sleep",)), ("several", ("sleep", "cars"))),
        ((0.5, 0.1, 0.45), ("single", ("sleep",)), ("single", ("sleep",))),
        ((0.45, 0.1, 0.5), ("general", ()), ("single", ("sleep",))),
        ((0.9, 0.1, 0.1), ("single", ("sleep",)), ("single", ("sleep",))),
        ((0.1, 0.1, 0.9), ("general", ()), ("general", ())),
    ],
)
def test_what_is_ambiguous_may_be_answered_without_asking(
    scores: tuple[float, float, float], best: tuple[str, tuple[str, ...]], everybody: tuple[str, tuple[str, ...]]
) -> None:
    for on_ambiguous, expected in (("best", best), ("all", everybody)):
        decision = decide(*scores, policy=Policy(POLICY.thresholds, TITLES, on_ambiguous=on_ambiguous))  # type: ignore[arg-type]
        assert (decision.kind, decision.experts) == expected
        assert decision.choices == ()


@pytest.mark.parametrize(
    ("decision", "runner_up"),
    [
        (decide(0.9, 0.2, none=0.1), "cars"),
        (decide(0.9, 0.1, none=0.2), GENERAL),
        (decide(0.9, 0.8, none=0.2), GENERAL),
        (decide(0.5, 0.5, none=0.2), GENERAL),
        (decide(0.1, 0.2, none=0.9), "cars"),
        (decide(0.3, 0.2, none=0.9, policy=REFUSING), "sleep"),
    ],
)
def test_the_runner_up_is_the_best_that_was_not_chosen(decision: Decision, runner_up: str) -> None:
    assert decision.runner_up == runner_up


@pytest.mark.parametrize(
    ("decision", "reason"),
    [
        (decide(0.98, 0.05, none=0.01), "The question is about Sleep science (98%); next: Car history (5%)."),
        (decide(0.98, 0.01, none=0.02), "The question is about Sleep science (98%); next: no expert (2%)."),
        (decide(0.9, 0.8, none=0.1),
         "The question is about Sleep science (90%) and Car history (80%); next: no expert (10%)."),
        (decide(0.5, 0.45), "It could be about Sleep science (50%) or Car history (45%): please say which."),
        (decide(0.1, 0.02),
         ("No expert covers this question; the closest was Sleep science (10%). "
          "The base model answers, without an expert.")),
        (decide(0.1, 0.2, policy=REFUSING),
         "No expert covers this question; the closest was Car history (20%). It is not answered."),
        (forced("sleep", "Sleep science"), "The request asks for the expert Sleep science."),
        (forced(GENERAL, "General (no expert)"), "The request asks for the bare base model."),
    ],
)  # fmt: skip
def test_the_reason_is_a_sentence_that_a_person_can_read(decision: Decision, reason: str) -> None:
    assert decision.reason == reason


def test_the_decision_keeps_the_scores_and_the_routers_name() -> None:
    scores = Scores({"sleep": 0.9, "cars": 0.1}, 0.05)
    decision = POLICY.decide(scores, "embedding")
    assert (decision.scores, decision.router) == (scores, "embedding")


def test_an_expert_without_a_title_goes_by_its_name() -> None:
    assert "about wine (90%)" in POLICY.decide(Scores({"wine": 0.9}, 0.0)).reason


def test_without_any_expert_everything_is_general() -> None:
    decision = POLICY.decide(Scores({}, 1.0))
    assert (decision.kind, decision.runner_up) == ("general", None)
    assert decision.reason == "No expert covers this question. The base model answers, without an expert."


def test_forced_takes_whom_the_caller_names_without_scores() -> None:
    assert forced("cars", "Car history") == Decision(
        "forced", ("cars",), None, None, "The request asks for the expert Car history."
    )


def test_a_decision_cannot_be_changed_afterwards() -> None:
    with pytest.raises(FrozenInstanceError):
        decide(0.9, 0.1).kind = "general"  # type: ignore[misc]


probabilities = st.floats(0, 1)


@given(st.dictionaries(st.sampled_from(sorted(TITLES)), probabilities), probabilities, probabilities, probabilities)
def test_whatever_the_scores_the_rules_hold(experts: dict[str, float], none: float, a: float, b: float) -> None:
    thresholds = Thresholds(accept=max(a, b), clarify=min(a, b))
    scores = Scores(experts, none)
    decision = Policy(thresholds, TITLES).decide(scores)
    needed = {name for name, p in experts.items() if p >= thresholds.accept}
    likely = {name for name, p in {**experts, GENERAL: none}.items() if p >= thresholds.clarify}
    assert set(decision.prediction_set) == likely
    if len(needed) > 1:
        assert (decision.kind, set(decision.experts)) == ("several", needed)
    elif len(likely) > 1:
        assert (decision.kind, set(decision.choices)) == ("clarify", likely)
        assert set(decision.experts) == likely - {GENERAL}
    else:
        assert decision.kind == ("single" if likely - {GENERAL} else "general")
        assert set(decision.experts) == likely - {GENERAL}
