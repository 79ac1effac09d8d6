from __future__ import annotations

from expert_router.serving.prompts import BARE_BASE_MODEL, clarification, expert_messages, refusal
from expert_router.types import GENERAL, Decision, Expert, Message
from support import CARS, SLEEP, TITLES

QUESTION = Message("user", "What is REM sleep?")
SMELL = Expert("smell", "Smell", "", "You know smells.")


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


def test_the_question_back_names_the_experts_in_the_decisions_order() -> None:
    decision = Decision("clarify", ("cars", "sleep"), None, None, "")
    assert clarification(decision, TITLES) == (
        "I am not sure who should answer this: is it about Car history or Sleep science?"
    )


def test_a_refusal_says_what_can_be_asked() -> None:
    assert refusal(TITLES) == (
        "None of my experts covers this question. I can answer questions about Sleep science, Car history."
    )
