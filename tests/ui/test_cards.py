from __future__ import annotations

from expert_router.types import Decision, Served, Timings
from expert_router.ui.cards import decision_card
from expert_router.ui.catalogue import Catalogue
from expert_router.ui.client import Done, Routed
from expert_router.ui.conversation import Exchange

DECISION = Decision("single", ("sleep",), None, None, "The question is about sleep.")
HASH = "0123456789abcdef" * 4


def card(served: Served | None) -> str:
    routed = Routed(DECISION, ("sleep",), {"sleep": "Sleep science"}, {} if served is None else {"sleep": served})
    return decision_card(Exchange("Why?").after(routed), Catalogue())


def test_the_badge_names_the_adapter_that_answers() -> None:
    shown = card(Served("qwen", HASH))
    assert "adapter 01234567<" in shown
    assert f'title="qwen with the adapter {HASH}"' in shown


def test_an_expert_without_an_adapter_is_shown_as_the_base_model() -> None:
    assert 'title="qwen, without an adapter">base model<' in card(Served("qwen"))


def test_what_was_answered_before_says_so_beside_its_expert_once_it_is_there() -> None:
    routed = Routed(DECISION, ("sleep", "cars"), {"sleep": "Sleep science", "cars": "Car history"})
    exchange = Exchange("Why?").after(routed)
    assert "given again" not in decision_card(exchange, Catalogue())
    for cache, badges in (({"sleep": "miss", "cars": "shared"}, []), ({"sleep": "miss", "cars": "hit"}, ["cars"])):
        shown = decision_card(exchange.after(Done(Timings(), None, cache=cache)), Catalogue())
        of_each = dict(zip(("sleep", "cars"), shown.split('<span class="er-who">')[1:], strict=True))
        assert [name for name, badge in of_each.items() if ">given again<" in badge] == badges


def test_names_from_outside_are_escaped() -> None:
    shown = card(Served('<b onclick="x">', "<i>" * 8))
    assert "<b onclick" not in shown
    assert "<i>" not in shown


def test_a_server_that_does_not_say_what_answers_has_no_proof() -> None:
    assert "er-proof" not in card(None)
