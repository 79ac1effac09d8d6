"""An expert taught to the shipped router from a few examples: what reaches it, and what stays where it was."""

from __future__ import annotations

import csv
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from expert_router.artifacts import load_experts
from expert_router.catalogue import ROUTER_FOLDER, Version
from expert_router.data.labelled import LabelledQuestion, read_labelled
from expert_router.errors import ConfigError
from expert_router.routing.added import HEAD_FILE, AddedHead, load_added
from expert_router.routing.embedding import EmbeddingRouter
from expert_router.serving.build import build_router
from expert_router.serving.parts import Parts
from expert_router.settings import load_settings
from expert_router.training.addition import Background, fit_addition
from expert_router.vectors import embed_texts
from support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

GARDENING = ROOT / "data" / "gardening"
PROCESSED = ROOT / "data" / "processed"


def questions(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


EXAMPLES = [row["question"] for row in questions(GARDENING / "examples.csv")]
MEANT = [row["question"] for row in questions(GARDENING / "test.csv") if row["experts"] == "gardening"]


@pytest.fixture(scope="module")
def parts() -> Parts:
    settings = load_settings("default")
    return Parts(settings, load_experts(settings.resolve(settings.paths.experts), settings.home), progress=False)


@pytest.fixture(scope="module")
def background(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Background:
    """Fewer questions than are served with, so that they are embedded in seconds."""
    picked = random.Random(0)
    labelled = [
        *picked.sample(read_labelled(PROCESSED / "routing_calibration.csv"), 200),
        *picked.sample(read_labelled(PROCESSED / "routing_train.csv"), 200),
    ]
    return embedded(parts, labelled, tmp_path_factory.mktemp("vectors"))


def embedded(parts: Parts, labelled: list[LabelledQuestion], cache: Path) -> Background:
    texts = [question.query for question in labelled]
    vectors = embed_texts(texts, parts.encoder, cache, label="read", progress=False)
    return Background(labelled, vectors.astype(np.float32))


def fit(parts: Parts, background: Background, count: int, examples: list[str] = EXAMPLES) -> AddedHead:
    return fit_addition("gardening", examples[:count], background, parts.encoder, parts.artifact.calibration)


def router_with(parts: Parts, *heads: AddedHead, hidden: frozenset[str] = frozenset()) -> EmbeddingRouter:
    return EmbeddingRouter(parts.encoder, parts.artifact, parts.terms, 0.95, added=heads, hidden=hidden)


def claimed(router: EmbeddingRouter, query: str) -> set[str]:
    return {name for name, p in router.score(query).experts.items() if p >= router.thresholds.accept}


@pytest.fixture(scope="module")
def head(parts: Parts, background: Background) -> AddedHead:
    return fit(parts, background, 20)


# What it learns


def test_twenty_examples_reach_four_of_five_questions_that_they_do_not_hold(parts: Parts, head: AddedHead) -> None:
    assert len(EXAMPLES) >= 20
    assert not set(EXAMPLES) & set(MEANT)
    router = router_with(parts, head)
    assert router.experts == ("cars", "sleep", "gardening")
    reached = [question for question in MEANT if claimed(router, question) == {"gardening"}]
    assert len(MEANT) >= 40
    assert len(reached) >= 0.8 * len(MEANT), set(MEANT) - set(reached)


def test_questions_of_the_others_keep_their_decision(parts: Parts, head: AddedHead) -> None:
    test = read_labelled(PROCESSED / "routing_test.csv")
    before, after = router_with(parts), router_with(parts, head)
    for name in ("sleep", "cars"):
        asked = random.Random(1).sample([each.query for each in test if each.experts == {name}], 50)
        same = [query for query in asked if claimed(after, query) == claimed(before, query)]
        assert len(same) >= 49, set(asked) - set(same)


def test_the_experts_that_were_there_keep_their_probabilities_to_the_last_bit(parts: Parts, head: AddedHead) -> None:
    before, after = router_with(parts), router_with(parts, head)
    for query in ("What is REM sleep?", MEANT[0], "What is the capital of France?"):
        with_it, without = after.score(query), before.score(query)
        gardening = with_it.experts["gardening"]
        assert {name: p for name, p in with_it.experts.items() if name != "gardening"} == without.experts
        assert with_it.none == pytest.approx(without.none * (1 - gardening))


def test_the_same_examples_teach_the_same_to_the_last_bit(
    parts: Parts, background: Background, head: AddedHead
) -> None:
    again = fit(parts, background, 20)
    assert np.array_equal(again.weights_D, head.weights_D)
    assert np.array_equal(again.calibration_F, head.calibration_F)
    assert (again.bias, again.words) == (head.bias, head.words)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_fewer_examples_work_too(parts: Parts, background: Background, count: int) -> None:
    head = fit(parts, background, count)
    assert np.isfinite([*head.weights_D, head.bias, *head.calibration_F, *head.words.values()]).all()
    router = router_with(parts, head)
    ours = np.mean([router.score(query).experts["gardening"] for query in MEANT[:30]])
    others = [q.query for q in background.questions if q.experts][:30]
    theirs = np.mean([router.score(query).experts["gardening"] for query in others])
    assert ours > 2.5 * theirs
    assert claimed(router, EXAMPLES[0]) == {"gardening"}
    assert sum("gardening" in claimed(router, query) for query in others) <= 2


def test_a_description_alone_is_an_example(parts: Parts, background: Background) -> None:
    said = ["Gardening: Growing flowers, fruit and vegetables: pruning, sowing, soil, compost and pests."]
    router = router_with(parts, fit(parts, background, 1, said))
    ours = np.mean([router.score(query).experts["gardening"] for query in MEANT[:40]])
    theirs = np.mean([router.score(q.query).experts["gardening"] for q in background.questions[:40]])
    assert ours > 2 * theirs


def test_questions_for_nobody_that_look_like_the_examples_are_left_out(
    parts: Parts, background: Background, head: AddedHead, tmp_path: Path
) -> None:
    """They may well be of the new field; the same questions labelled for an expert stay and are learnt from."""
    look_alikes = [LabelledQuestion(query, frozenset(), "other") for query in MEANT[:30]]
    theirs = [replace(question, experts=frozenset({"cars"})) for question in look_alikes]
    as_nobodys, as_anothers = (
        fit(parts, background.and_(embedded(parts, labelled, tmp_path)), 20) for labelled in (look_alikes, theirs)
    )
    asked = [question.query for question in look_alikes]
    reached = [
        sum("gardening" in claimed(router_with(parts, each), query) for query in asked)
        for each in (head, as_nobodys, as_anothers)
    ]
    assert reached[1] >= reached[0] - 6
    assert reached[2] <= 0.8 * reached[1]


def test_the_experts_own_questions_are_no_background(parts: Parts, background: Background, tmp_path: Path) -> None:
    own = [LabelledQuestion(query, frozenset({"gardening"}), "gardening") for query in MEANT[:30]]
    with_them = background.and_(embedded(parts, own, tmp_path))
    assert [q.query for q in with_them.without(["gardening"]).questions] == [q.query for q in background.questions]
    assert np.array_equal(with_them.without(["gardening"]).vectors_BD, background.vectors_BD)
    alone, together = fit(parts, background, 3), fit(parts, with_them, 3)
    assert np.array_equal(alone.weights_D, together.weights_D)


# What stays of those that were taken away


def test_what_needs_an_expert_that_was_taken_away_needs_nobody(parts: Parts) -> None:
    router = router_with(parts, hidden=frozenset({"sleep"}))
    assert router.experts == ("cars",)
    scores = router.score("What happens in the brain during REM sleep?")
    assert set(scores.experts) == {"cars"}
    assert scores.experts["cars"] < 0.1
    assert scores.none > 0.9
    assert claimed(router, "Who founded Ferrari, and when?") == {"cars"}


def test_without_any_expert_everything_is_for_nobody(parts: Parts) -> None:
    router = router_with(parts, hidden=frozenset({"sleep", "cars"}))
    for history in ([], ["Who founded Ferrari?"]):
        scores = router.score("And how long does REM sleep last?", history)
        assert (scores.experts, scores.none > 0.9) == ({}, True)


# On disk


def test_what_was_taught_is_the_same_after_it_was_written_and_read(head: AddedHead, tmp_path: Path) -> None:
    head.save(tmp_path)
    read = AddedHead.load(tmp_path)
    assert np.array_equal(read.weights_D, head.weights_D)
    assert np.array_equal(read.calibration_F, head.calibration_F)
    assert read.words == pytest.approx(dict(head.words), rel=1e-6)
    assert (read.name, read.bias, read.encoder_sha256) == (head.name, pytest.approx(head.bias), head.encoder_sha256)
    vector = np.ones(len(head.weights_D), dtype=np.float32) / 20
    assert read.probability(vector, "prune roses", 0.3) == pytest.approx(head.probability(vector, "prune roses", 0.3))


@pytest.mark.parametrize("damage", ["missing", "cut", "other", "manifest"])
def test_what_was_taught_and_is_damaged_is_refused(head: AddedHead, tmp_path: Path, damage: str) -> None:
    head.save(tmp_path)
    file = tmp_path / HEAD_FILE
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "other":
        file.write_bytes(b"text")
    else:
        (tmp_path / "manifest.json").write_text("{", "utf-8")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        AddedHead.load(tmp_path)
    with pytest.raises(ConfigError):
        load_added(tmp_path, head.encoder_sha256)


def test_what_was_taught_to_another_router_is_left_out_with_a_warning(
    parts: Parts, head: AddedHead, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("gardening", "cooking", "mending"):
        (tmp_path / name).mkdir()
    head.save(tmp_path / "gardening" / ROUTER_FOLDER)
    replace(head, name="cooking", encoder_sha256="0" * 64).save(tmp_path / "cooking" / ROUTER_FOLDER)
    version = Version(1, 0, "add", "", {path.name: path for path in tmp_path.iterdir()})
    router = build_router(Parts(parts.settings, parts.experts, version=version, progress=False, like=parts))
    assert router.experts == ("cars", "sleep", "gardening")
    said = "was taught to another router, so nothing is routed to it: add it again"
    assert sorted(record.message for record in caplog.records) == [f"cooking {said}", f"mending {said}"]
