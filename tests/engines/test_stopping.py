from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expert_router.engines.stopping import StopScanner

FEW_LETTERS = st.text(alphabet="ab\n", max_size=14)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3).map(tuple)


def cut(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """The definition, by the letter: read on until some sequence is complete, and take the longest such away."""
    for end in range(1, len(text) + 1):
        if complete := [s for s in stop if text[:end].endswith(s)]:
            return text[: end - max(map(len, complete))], True
    return text, False


def fed(pieces: list[str], stop: tuple[str, ...]) -> tuple[list[str], bool]:
    scanner = StopScanner(stop)
    shown = [scanner.feed(piece) for piece in pieces]
    return [*shown, scanner.flush()], scanner.stopped


def split(text: str, cuts: set[int]) -> list[str]:
    places = [0, *sorted(at for at in cuts if at < len(text)), len(text)]
    return [text[start:end] for start, end in pairwise(places)]


@given(text=FEW_LETTERS, stop=STOPS, cuts=st.sets(st.integers(0, 14)))
def test_any_split_of_a_text_shows_what_cutting_it_at_the_first_stop_leaves(
    text: str, stop: tuple[str, ...], cuts: set[int]
) -> None:
    shown, stopped = fed(split(text, cuts), stop)
    assert ("".join(shown), stopped) == cut(text, stop)


@given(text=st.text(max_size=20), stop=st.text(min_size=1, max_size=3), cuts=st.sets(st.integers(0, 20)))
def test_one_sequence_is_cut_where_it_is_found_in_any_alphabet(text: str, stop: str, cuts: set[int]) -> None:
    shown, stopped = fed(split(text, cuts), (stop,))
    assert ("".join(shown), stopped) == (text.split(stop, maxsplit=1)[0], stop in text)


@given(text=FEW_LETTERS, stop=STOPS)
def test_nothing_is_held_back_longer_than_it_may_become_a_stop(text: str, stop: tuple[str, ...]) -> None:
    scanner = StopScanner(stop)
    shown = "".join(scanner.feed(letter) for letter in text)
    held = "" if scanner.stopped else text[len(shown) :]
    assert held == "" or any(s.startswith(held) and s != held for s in stop)


def test_a_stop_that_straddles_many_pieces_is_never_shown() -> None:
    assert fed(["Answer", ": 4", "\n", "U", "ser", ": more", " text"], ("\nUser:",)) == (
        ["Answer", ": 4", "", "", "", "", "", ""],
        True,
    )


def test_what_only_began_like_a_stop_is_shown_after_all() -> None:
    assert fed(["a\n", "Use", "ful"], ("\nUser:",)) == (["a", "", "\nUseful", ""], False)
    assert fed(["a\nUse"], ("\nUser:",)) == (["a", "\nUse"], False)


@pytest.mark.parametrize("stop", [(), ("",), ("", "")])
def test_without_stop_sequences_nothing_is_held_back(stop: tuple[str, ...]) -> None:
    assert fed(["one", " two"], stop) == (["one", " two", ""], False)


def test_after_a_stop_nothing_more_is_shown() -> None:
    scanner = StopScanner(("x",))
    assert scanner.feed("ax") == "a"
    assert scanner.feed("bcd") == ""
    assert scanner.flush() == ""
