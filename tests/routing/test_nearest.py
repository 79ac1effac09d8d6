from __future__ import annotations

import csv
import threading
from typing import TYPE_CHECKING

import pytest

from expert_router.artifacts import load_experts
from expert_router.data.labelled import LabelledQuestion
from expert_router.errors import DataError, NotReadyError
from expert_router.routing.nearest import Examples
from expert_router.serving.build import ROUTER_EXAMPLES, build_examples
from expert_router.serving.parts import Parts
from expert_router.settings import load_settings
from expert_router.types import Scores
from support import (
    BOTH_QUESTION,
    CARS_QUESTION,
    EXAMPLES,
    SLEEP_QUESTION,
    FixedRouter,
    WaitingEncoder,
    WordEncoder,
    write_examples,
)

if TYPE_CHECKING:
    from pathlib import Path


class OtherEncoder(WordEncoder):
    sha256 = "f" * 64


def made(folder: Path, encoder: WordEncoder | None = None) -> Examples:
    """Over the few examples of ``support``."""
    path = folder / "train.csv"
    return Examples(path if path.exists() else write_examples(path), encoder or WordEncoder(), folder / "examples")


def test_the_same_question_comes_first_and_is_as_similar_as_can_be(tmp_path: Path) -> None:
    examples = made(tmp_path)
    examples.read()
    found = examples.nearest(BOTH_QUESTION, limit=3)
    assert found is not None
    assert len(found) == 3
    assert [each.cosine for each in found] == sorted((each.cosine for each in found), reverse=True)
    (same, *_) = examples.nearest(f"Hello! {SLEEP_QUESTION}", limit=1) or ()
    assert (same.query, same.experts, same.cosine) == (SLEEP_QUESTION, ("sleep",), pytest.approx(1, abs=1e-3))
    (several,) = examples.nearest("Does a car driver need sleep?", limit=1) or ()
    assert several.experts == ("cars", "sleep")


def test_a_follow_up_is_compared_with_what_it_is_read_with(tmp_path: Path) -> None:
    examples = made(tmp_path)
    examples.read()
    (found,) = examples.nearest("and why?", [SLEEP_QUESTION], limit=1) or ()
    assert found.query == SLEEP_QUESTION


def test_as_many_as_there_are_and_none_when_none_are_wanted(tmp_path: Path) -> None:
    examples = made(tmp_path)
    examples.read()
    assert len(examples.nearest(SLEEP_QUESTION, limit=1000) or ()) == len(EXAMPLES)
    assert examples.nearest(SLEEP_QUESTION, limit=0) == ()


def test_until_they_are_read_there_is_no_answer_and_then_there_is(tmp_path: Path) -> None:
    encoder = WaitingEncoder()
    examples = made(tmp_path, encoder)
    assert examples.nearest(SLEEP_QUESTION) is None
    readers = [threading.Thread(target=examples.read) for _ in range(3)]
    for reader in readers:
        reader.start()
    encoder.begun.wait(5)
    assert examples.nearest(SLEEP_QUESTION) is None
    encoder.let.release(len(EXAMPLES))  # for one of them: the others find it done
    for reader in readers:
        reader.join(5)
    assert len(examples.nearest(SLEEP_QUESTION) or ()) == 5


def test_vectors_are_kept_and_made_anew_for_another_encoder(tmp_path: Path) -> None:
    first, again, other = WordEncoder(), WordEncoder(), OtherEncoder()
    for encoder in (first, again, other):
        made(tmp_path, encoder).read()
    assert len(first.read) == len(other.read) == len(EXAMPLES)
    assert again.read == []
    assert len(list((tmp_path / "examples").glob("*.npy"))) == 2


@pytest.mark.parametrize("content", [b"", b"not an array\n" * 100])
def test_a_damaged_file_of_vectors_is_made_anew(tmp_path: Path, content: bytes) -> None:
    made(tmp_path).read()
    (path,) = (tmp_path / "examples").glob("*.npy")
    good = path.read_bytes()
    path.write_bytes(content)
    encoder = WordEncoder()
    examples = made(tmp_path, encoder)
    examples.read()
    assert len(encoder.read) == len(EXAMPLES)
    assert path.read_bytes() == good
    assert (examples.nearest(CARS_QUESTION, limit=1) or ())[0].query == CARS_QUESTION


def test_a_project_without_such_a_file_has_no_examples(tmp_path: Path) -> None:
    examples = Examples(tmp_path / "nothing.csv", WordEncoder(), tmp_path / "examples")
    examples.read()
    assert examples.nearest(SLEEP_QUESTION) == ()
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_something_else_is_an_error_that_names_it_and_no_examples_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("a,b\n1,2\n", "utf-8")
    examples = made(tmp_path)
    with pytest.raises(DataError, match=r"train\.csv is not a file of labelled questions"):
        examples.read()
    assert examples.nearest(SLEEP_QUESTION) == ()


def test_closing_ends_the_reading_and_keeps_what_was_read(tmp_path: Path) -> None:
    encoder, ended = WaitingEncoder(), []
    examples = made(tmp_path, encoder)

    def read() -> None:
        with pytest.raises(NotReadyError, match="stopped before all 10 texts were read"):
            examples.read()
        ended.append(True)

    reader = threading.Thread(target=read)
    reader.start()
    encoder.let.release(4)
    encoder.begun.wait(5)
    examples.close()
    encoder.let.release(1)
    reader.join(5)
    assert ended
    later = WordEncoder()
    made(tmp_path, later).read()
    assert len(later.read) <= len(EXAMPLES)


# What is shipped


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """A twentieth of the shipped questions by the shipped encoder; reading all of them takes a quarter of a minute."""
    settings = load_settings("default")
    parts = Parts(settings, load_experts(settings.resolve(settings.paths.experts), settings.home), progress=False)
    folder = tmp_path_factory.mktemp("examples")
    with (settings.resolve(settings.paths.data) / ROUTER_EXAMPLES).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows[::20])
    examples = Examples(folder / "train.csv", parts.encoder, folder / "vectors")
    examples.read()
    return examples


@pytest.mark.parametrize(
    ("question", "experts"),
    [
        ("who founded Ferrari?", ("cars",)),
        ("Which engine did the first Porsche have?", ("cars",)),
        ("What happens in the brain during REM sleep?", ("sleep",)),
        ("Does melatonin help against jet lag?", ("sleep",)),
        ("please transfer money to my savings account", ()),
    ],
)
def test_the_nearest_examples_are_of_the_questions_field(
    shipped: Examples, question: str, experts: tuple[str, ...]
) -> None:
    found = shipped.nearest(question) or ()
    assert [each.experts for each in found] == [experts] * 5
    assert all(0.2 < each.cosine <= 1.001 for each in found)


def test_only_a_router_with_an_encoder_of_its_own_has_examples_and_no_other_loads_one() -> None:
    settings = load_settings("default")
    parts = Parts(settings, load_experts(settings.resolve(settings.paths.experts), settings.home), progress=False)
    scores = Scores({"sleep": 0.9}, 0.1)
    assert build_examples(parts, FixedRouter(scores, name="lexical")) is None
    assert "encoder" not in vars(parts)
    assert build_examples(parts, FixedRouter(scores, name="embedding")) is not None


def test_what_an_added_expert_was_taught_stands_among_the_examples(tmp_path: Path) -> None:
    shipped = made(tmp_path)
    question = LabelledQuestion("Why does moss grow in a lawn?", frozenset({"gardening"}), "gardening")
    both = shipped.with_taught([question])
    assert both.nearest(question.query) is None, "the shipped ones are not read yet"
    both.read()
    found = both.nearest(question.query, limit=3) or ()
    assert (found[0].query, found[0].experts) == (question.query, ("gardening",))
    assert [each.cosine for each in found] == sorted((each.cosine for each in found), reverse=True)
    assert len(found) == 3
    assert found[1:] == (shipped.nearest(question.query, limit=2) or ())
    assert both.nearest(SLEEP_QUESTION, limit=1) == shipped.nearest(SLEEP_QUESTION, limit=1)
    assert both.with_taught([]) is shipped
