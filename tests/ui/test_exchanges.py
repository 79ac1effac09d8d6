from __future__ import annotations

import pytest

from expert_router.types import Found, Message, Passage, Sources, Timings
from expert_router.ui.client import Done, Event, Failed, Section, Text
from expert_router.ui.conversation import Conversation, Exchange, Part

NAPS, DREAMS, BELTS = (
    Found(Passage(f"{name}.md#1", name, f"About {name}.", f"{name}.md"), 0.9) for name in ("naps", "dreams", "belts")
)


def after(*events: Event) -> Exchange:
    exchange = Exchange("Why?")
    for event in events:
        exchange = exchange.after(event)
    return exchange


def test_an_answer_by_one_expert_is_one_part_with_its_sources() -> None:
    exchange = after(Sources("sleep", (NAPS, DREAMS)), Text("Naps help"), Text(" [1]."), Done(Timings(), None))
    assert exchange.parts == (Part("sleep", (NAPS, DREAMS), "Naps help [1]."),)
    assert exchange.parts[0].cited == {1}
    assert exchange.progress == "done"


def test_each_of_several_experts_counts_its_own_sources() -> None:
    exchange = after(
        Section("sleep"), Text("**Sleep**\n\n"), Sources("sleep", (NAPS, DREAMS)), Text("Dreams [2]."),
        Section("cars"), Text("\n\n**Cars**\n\n"), Sources("cars", (BELTS,)), Text("Belts [1] [2]."),
    )  # fmt: skip
    assert [(part.expert, part.found, part.cited) for part in exchange.parts] == [
        ("sleep", (NAPS, DREAMS), {2}),
        ("cars", (BELTS,), {1}),
    ]
    assert exchange.text == "**Sleep**\n\nDreams [2].\n\n**Cars**\n\nBelts [1] [2]."


def test_an_expert_without_sources_takes_none_from_the_one_before() -> None:
    exchange = after(Section("sleep"), Sources("sleep", (NAPS,)), Text("Naps."), Section("cars"), Text("Belts [1]."))
    assert [part.cited for part in exchange.parts] == [set(), set()]


@pytest.mark.parametrize(
    ("text", "cited"),
    [("", set()), ("[0] [3] [12]", set()), ("[2][1], again [2]", {1, 2}), ("[x] 1 (1) [ 1 ] [1", set())],
)
def test_only_numbers_that_there_are_count_as_citations(text: str, cited: set[int]) -> None:
    assert Part("sleep", (NAPS, DREAMS), text).cited == cited


def test_what_was_read_is_kept_when_the_answer_breaks_off() -> None:
    exchange = after(Sources("sleep", (NAPS,)), Text("Naps [1]"), Failed("The engine stopped."))
    assert (exchange.progress, exchange.text, exchange.parts[0].cited) == ("failed", "Naps [1]", {1})


def test_asking_again_forgets_the_sources_of_the_first_try() -> None:
    answered = Conversation().ask("Why?", "auto").with_last(after(Sources("sleep", (NAPS,)), Text("Naps [1].")))
    [exchange] = answered.without_last().ask("Why?", "cars").exchanges
    assert exchange.parts == ()


def test_what_was_read_is_not_sent_back_with_the_next_question() -> None:
    answered = Conversation().ask("Why?", "auto").with_last(after(Sources("sleep", (NAPS,)), Text("Naps help.")))
    assert answered.ask("And then?", "auto").messages() == (
        Message("user", "Why?"),
        Message("assistant", "Naps help."),
        Message("user", "And then?"),
    )
