"""Where an expert's request goes: the policy alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from expert_router.deploy.placement import Candidate, placement_key, rank
from expert_router.types import Served
from support import CARS, SLEEP


def candidate(name: str, held: str = "", outstanding: int = 0) -> Candidate:
    return Candidate(name, frozenset(held), outstanding)


def names(*candidates: Candidate, key: str = "s", overflow_at: int = 4) -> list[list[str]]:
    return [[each.name for each in group] for group in rank(key, candidates, overflow_at)]


def test_who_holds_the_expert_comes_first_however_little_others_have_to_do() -> None:
    assert names(candidate("idle"), candidate("holder", "s", outstanding=3)) == [["holder"], ["idle"]]


def test_of_several_that_hold_it_the_least_outstanding_is_left_to_choose() -> None:
    groups = names(candidate("a", "s", 2), candidate("b", "sc", 1), candidate("c"))
    assert groups == [["a", "b"], ["c"]]


def test_an_expert_that_nobody_holds_goes_where_the_fewest_are() -> None:
    groups = names(candidate("two", "cd"), candidate("one", "c", outstanding=2), candidate("other", "d"))
    assert groups == [["other", "one"], ["two"]]


def test_past_the_bound_the_expert_overflows_and_comes_back_below_it() -> None:
    other = candidate("other", "c")
    assert names(candidate("holder", "s", outstanding=4), other) == [["other"], ["holder"]]
    assert names(candidate("holder", "s", outstanding=3), other)[0] == ["holder"]


def test_where_all_are_past_the_bound_all_are_left() -> None:
    assert names(candidate("a", "s", 4), candidate("b", "", 5)) == [["a", "b"]]


def test_another_adapter_or_base_is_another_key_and_so_is_another_expert_on_the_same_base() -> None:
    served = [(SLEEP, Served("base", "a" * 64)), (SLEEP, Served("base", "b" * 64)), (SLEEP, Served("base"))]
    keys = [placement_key(expert, each) for expert, each in [*served, (CARS, Served("base"))]]
    assert len(set(keys)) == 4
    elsewhere = replace(SLEEP, knowledge=Path("elsewhere"))
    assert placement_key(elsewhere, Served("base")) == keys[2]
