"""What few examples teach, measured on a router whose learning is plain to see: a word is known or is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_router.data.labelled import LabelledQuestion
from expert_router.evaluation.additions import COUNTS, DRAWS, measure_additions
from expert_router.types import Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXAMPLES = [f"word{n}" for n in range(40)]


def question(text: str, *experts: str) -> LabelledQuestion:
    return LabelledQuestion(text, frozenset(experts), "any")


def taught(examples: Sequence[str]) -> Callable[[str], Decision]:
    def decide(text: str) -> Decision:
        if text == "unsure":
            return Decision("clarify", ("new", "old"), None, None, "")
        known = text in examples or (text == "trap" and len(examples) > 8)
        return Decision("single", ("new",) if known else ("old",), None, None, "")

    return decide


def test_each_count_of_examples_is_measured_over_all_its_draws() -> None:
    test = [*(question(text, "new") for text in EXAMPLES), question("trap", "old"), question("both", "new", "old")]
    others = [question("trap", "old"), question("plain", "old"), question("unsure", "old")]
    results = measure_additions("new", EXAMPLES, description="word0", test=test, others=others, taught=taught)
    assert [result.examples for result in results] == [*COUNTS, len(EXAMPLES)]
    assert [result.reached.value for result in results] == [1 / 40, 4 / 40, 8 / 40, 20 / 40, 1.0]
    assert [result.kept_away.value for result in results] == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert [round(result.unchanged.value, 3) for result in results] == [1.0, 1.0, 1.0, 0.667, 0.667]
    assert [result.reached.n for result in results] == [40, 40 * DRAWS, 40 * DRAWS, 40 * DRAWS, 40]


def test_to_be_asked_back_is_not_to_be_reached() -> None:
    results = measure_additions(
        "new", EXAMPLES, description="d", test=[question("unsure", "new", "old"), question("unsure", "new"),
        question("x", "old")], others=[question("x", "old")], taught=taught,
    )  # fmt: skip
    assert {result.reached.value for result in results} == {0.0}
