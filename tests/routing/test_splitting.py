from __future__ import annotations

import pytest

from expert_router.routing.splitting import MOST_CUTS, split_question

WORDS = {
    "cars": {"ferrari", "car", "wankel", "packard", "v8", "engine", "ford"},
    "sleep": {"dream", "sleep", "rem", "nap", "insomnia"},
    "tea": {"tea", "kettle"},
}


def score(text: str) -> dict[str, float]:
    words = {word.strip("?.,;:!").lower() for word in text.split()}
    return {expert: 0.9 if words & own else 0.1 for expert, own in WORDS.items()}


def split(question: str, *experts: str) -> list[tuple[str, str]]:
    return list(split_question(question, experts or ("cars", "sleep"), score).items())


@pytest.mark.parametrize(
    "joint",
    [
        " and ",
        "? And ",
        "; ",
        ", and also ",
        " btw ",
        " plus ",
        ". ",
        " / ",
        ", ",
        " & ",
        " then ",
        "\n",
        " - ",
        " \u2013 ",
    ],
)
def test_a_question_is_cut_where_two_requests_are_joined(joint: str) -> None:
    (first, one), (second, other) = split(f"who founded ferrari{joint}what is a nap")
    assert (first, second) == ("cars", "sleep")
    assert (one.rstrip("?."), other) == ("who founded ferrari", "what is a nap")


def test_the_parts_come_in_the_order_of_the_question() -> None:
    assert split("what is a nap and who founded ferrari") == [
        ("sleep", "what is a nap"),
        ("cars", "who founded ferrari"),
    ]


def test_a_strong_joint_is_preferred_to_one_within_a_request() -> None:
    assert split("Was ferrari first, and when. Which engine? Also, what is a dream, and why?") == [
        ("cars", "Was ferrari first, and when. Which engine?"),
        ("sleep", "what is a dream, and why?"),
    ]


def test_three_experts_get_three_parts() -> None:
    assert split("who founded ferrari, what is a nap and how hot is tea", "cars", "sleep", "tea") == [
        ("cars", "who founded ferrari"),
        ("sleep", "what is a nap"),
        ("tea", "how hot is tea"),
    ]


def test_experts_that_are_asked_in_turns_get_all_their_pieces() -> None:
    assert split("ford v8 / rem share / first packard / nap length") == [
        ("cars", "ford v8\nfirst packard"),
        ("sleep", "rem share\nnap length"),
    ]


@pytest.mark.parametrize(
    "question",
    ["how does a car notice that its driver wants to sleep", "sleep in a car and nap in a ford", "why", "", "?? / !!"],
)
def test_where_no_cut_tells_them_apart_everybody_gets_the_whole_question(question: str) -> None:
    assert split(question) == [("cars", question), ("sleep", question)]


def test_nothing_of_the_question_is_lost_but_what_joined_it() -> None:
    question = "Please, who founded ferrari in 1947; and, by the way, what is a long nap good for at noon?"
    kept = " ".join(part for _, part in split(question))
    assert set(question.replace(";", "").split()) - set(kept.split()) <= {"and,", "by", "the", "way,"}


def test_a_message_of_any_length_costs_few_looks_at_the_router() -> None:
    looks = []

    def counted(text: str) -> dict[str, float]:
        looks.append(text)
        return score(text)

    for question in ("ford and nap " * 5000, "why? " * 5000, "a / b " * 5000):
        looks.clear()
        split_question(question, ("cars", "sleep"), counted)
        assert len(looks) <= 3 * MOST_CUTS + 1


def test_a_text_of_a_megabyte_is_not_cut() -> None:
    text = f"Sleep{' ' * 1_000_000}; and cars?"
    assert split_question(text, ["sleep", "cars"], lambda _: {}) == {"sleep": text, "cars": text}
