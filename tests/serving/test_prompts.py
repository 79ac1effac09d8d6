from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from expert_router.knowledge.grounding import RULES
from expert_router.serving.prompts import BARE_BASE_MODEL, clarification, expert_messages, refusal
from expert_router.types import GENERAL, Decision, Expert, Found, Message
from support import CARS, NAPS, SLEEP, STAGES, TITLES

QUESTION = Message("user", "What is REM sleep?")
SMELL = Expert("smell", "Smell", "", "You know smells.")
READER = replace(SLEEP, knowledge=Path("sleep"))
FOUND = [Found(STAGES, 1.0), Found(NAPS, 0.8)]
READ = (
    "Question: What is REM sleep?\n\n"
    "[1] REM sleep: what happens\nThe eyes dart about under closed lids.\n\n"
    "[2] Naps\nA nap of twenty minutes helps for hours.\n\n"
    "Question: What is REM sleep?"
)


def test_the_experts_instructions_come_first() -> None:
    assert expert_messages(SLEEP, [QUESTION]) == [Message("system", "You know sleep."), QUESTION]


def test_the_callers_own_system_messages_follow_in_the_same_message() -> None:
    conversation = [Message("system", "Be brief."), QUESTION, Message("system", "In French.")]
    assert expert_messages(SLEEP, conversation) == [
        Message("system", "You know sleep.\n\nBe brief.\n\nIn French."),
        QUESTION,
    ]


def test_the_conversation_keeps_its_order() -> None:
    turns = [Message("user", "Hello"), Message("assistant", "Hi"), QUESTION]
    assert expert_messages(SLEEP, turns)[1:] == turns


def test_the_bare_base_model_is_told_nothing_but_what_the_caller_says() -> None:
    assert BARE_BASE_MODEL.name == GENERAL
    assert expert_messages(BARE_BASE_MODEL, [QUESTION]) == [QUESTION]
    own = Message("system", "Be brief.")
    assert expert_messages(BARE_BASE_MODEL, [own, QUESTION]) == [own, QUESTION]


def test_one_of_several_is_told_its_own_part_and_whose_the_rest_is() -> None:
    system, question = expert_messages(SLEEP, [Message("system", "Be brief."), QUESTION], [CARS, SMELL])
    instructions, part, own = system.content.split("\n\n")
    assert (instructions, own) == ("You know sleep.", "Be brief.")
    assert "only the part about Sleep science" in part
    assert "leave Car history and Smell out" in part
    assert question == QUESTION


def test_nothing_of_the_conversation_is_changed_or_lost() -> None:
    odd = [Message("user", " \n<|im_end|> "), Message("assistant", ""), Message("user", "睡眠 😀")]
    assert expert_messages(CARS, odd)[1:] == odd


# With passages


def test_the_question_stands_around_the_numbered_passages_and_the_rules_after_the_instructions() -> None:
    assert expert_messages(READER, [QUESTION], found=FOUND) == [
        Message("system", f"You know sleep.\n\n{RULES}"),
        Message("user", READ),
    ]


def test_the_first_passage_is_put_whole_between_the_questions_and_the_next_as_its_excerpt() -> None:
    first, second = (replace(hit, excerpt="Only this.") for hit in FOUND)
    _, user = expert_messages(READER, [QUESTION], found=[first, second])
    assert user.content == READ.replace(NAPS.text, "Only this.")


def test_without_passages_there_are_no_rules_and_the_question_stays_as_it_is() -> None:
    assert expert_messages(READER, [QUESTION]) == [Message("system", "You know sleep."), QUESTION]


def test_rules_come_before_the_part_of_several_and_the_callers_own_words() -> None:
    system, _ = expert_messages(READER, [Message("system", "Be brief."), QUESTION], [CARS], FOUND)
    instructions, rules, part, own = system.content.split("\n\n")
    assert (instructions, rules, own) == ("You know sleep.", RULES, "Be brief.")
    assert "only the part about Sleep science" in part


def test_only_the_last_turn_is_asked_with_passages() -> None:
    before = [Message("user", "Hello"), Message("assistant", "Hi")]
    assert expert_messages(READER, [*before, QUESTION], found=FOUND)[1:] == [*before, Message("user", READ)]


@pytest.mark.parametrize("found", [FOUND, []], ids=["passages", "nothing found"])
def test_numbers_of_passages_that_are_gone_are_taken_out_of_earlier_answers(found: list[Found]) -> None:
    before = [Message("user", "Is [2] right?"), Message("assistant", "Yes [2]. Both [1][3] say so.")]
    _, user, assistant, _ = expert_messages(READER, [*before, QUESTION], found=found)
    assert (user, assistant) == (before[0], Message("assistant", "Yes. Both say so."))


@pytest.mark.parametrize("expert", [SLEEP, BARE_BASE_MODEL], ids=["without knowledge", "the base model"])
def test_who_reads_nothing_keeps_brackets_in_earlier_answers(expert: Expert) -> None:
    """They may be code."""
    code = Message("assistant", "total = x[0] + x[1]")
    assert code in expert_messages(expert, [Message("user", "Add them."), code, QUESTION])


# Nobody answers


def test_the_question_back_names_the_experts_in_the_decisions_order() -> None:
    decision = Decision("clarify", ("cars", "sleep"), None, None, "", prediction_set=("cars", "sleep"))
    assert clarification(decision, TITLES) == (
        "I am not sure who should answer this: is it about Car history or Sleep science?"
    )


def test_the_question_back_may_be_whether_it_is_about_any_of_them() -> None:
    decision = Decision("clarify", ("sleep",), None, None, "", prediction_set=("general", "sleep"))
    assert clarification(decision, TITLES).endswith("is it about something else or Sleep science?")


def test_a_refusal_says_what_can_be_asked() -> None:
    assert refusal(TITLES) == (
        "None of my experts covers this question. I can answer questions about Sleep science, Car history."
    )
