from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from expert_router.data.dialogues import Turn
from expert_router.data.labelled import LabelledQuestion
from expert_router.errors import ConfigError, DataError
from expert_router.knowledge.terms import TermIndex
from expert_router.routing.embedding import HEAD_FILE, WORDS_FILE, EmbeddingRouter, RouterArtifact
from expert_router.routing.policy import Policy
from expert_router.training.router import (
    FEWEST_TO_VOTE,
    MIN_EXAMPLES,
    PAIRS_PER_EXAMPLE,
    choose_accept,
    fit_follow_up,
    fit_router,
    labels,
)
from expert_router.types import GENERAL
from support import WordEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


FIELDS = {
    "cars": "car engine wheel racing ford benz factory diesel seat gearbox",
    "sleep": "sleep dream rem melatonin insomnia night pillow snoring apnoea circadian",
    "": "france bread poem planet chess river violin tax garden python",
}
FILLERS = ["what", "is", "the", "who", "why", "does", "a", "how", "of", "when"]


ENCODER = WordEncoder()
NO_PASSAGES = TermIndex({})


def questions(count: int, seed: int, fields: Sequence[str] = tuple(FIELDS)) -> list[LabelledQuestion]:
    """As many questions of each field, each from two fillers and two words of the field."""
    rng = random.Random(seed)
    made = []
    for field in fields:
        for _ in range(count):
            words = rng.sample(FILLERS, 2) + rng.sample(FIELDS[field].split(), 2)
            made.append(LabelledQuestion(" ".join(words) + "?", frozenset(filter(None, [field])), field or "other"))
    return made


TRAIN, CALIBRATION, UNSEEN = questions(120, 0), questions(20, 1), questions(40, 2)
EXPERTS = ["cars", "sleep"]


def fit(train: Sequence[LabelledQuestion] = TRAIN, *, seed: int = 0) -> RouterArtifact:
    return fit_router(train, CALIBRATION, EXPERTS, ENCODER, NO_PASSAGES, seed=seed)


@pytest.fixture(scope="module")
def artifact() -> RouterArtifact:
    return fit()


def chosen(artifact: RouterArtifact, question: str) -> frozenset[str]:
    router = EmbeddingRouter(ENCODER, artifact, NO_PASSAGES, 0.9)
    return frozenset(Policy(router.thresholds, {}).decide(router.score(question)).experts)


def test_separable_fields_are_told_apart_in_questions_never_seen(artifact: RouterArtifact) -> None:
    right = [chosen(artifact, question.query) == question.experts for question in UNSEEN]
    assert np.mean(right) > 0.95


def test_two_questions_in_one_need_both_experts_though_no_training_question_did(artifact: RouterArtifact) -> None:
    cars, sleep = (questions(40, 3, [field]) for field in EXPERTS)
    assert not any(len(question.experts) > 1 for question in TRAIN)
    both = [f"{one.query} and {other.query}" for one, other in zip(cars, sleep, strict=True)]
    assert np.mean([chosen(artifact, text) == {"cars", "sleep"} for text in both]) > 0.9


def test_the_last_row_is_the_chance_that_nobody_is_needed(artifact: RouterArtifact) -> None:
    assert artifact.experts == ("cars", "sleep")
    none = [EmbeddingRouter(ENCODER, artifact, NO_PASSAGES, 0.9).score(question.query).none for question in UNSEEN]
    needed = np.array([bool(question.experts) for question in UNSEEN])
    assert np.mean((np.array(none) > 0.5) != needed) > 0.95


def test_the_threshold_is_a_probability_and_each_calibration_question_has_its_conformity(
    artifact: RouterArtifact,
) -> None:
    assert 0.2 <= artifact.accept <= 0.8
    assert artifact.conformity_N.shape == (len(CALIBRATION),)
    assert ((artifact.conformity_N > 0) & (artifact.conformity_N < 1)).all()


def test_prediction_sets_hold_what_unseen_questions_need_as_often_as_was_asked_for(artifact: RouterArtifact) -> None:
    sizes = []
    for coverage in (0.8, 0.95, 0.99):
        router = EmbeddingRouter(ENCODER, artifact, NO_PASSAGES, coverage)
        policy = Policy(router.thresholds, {})
        sets = [set(policy.decide(router.score(question.query)).prediction_set) for question in UNSEEN]
        covered = [(question.experts or {GENERAL}) <= held for question, held in zip(UNSEEN, sets, strict=True)]
        assert np.mean(covered) >= coverage - 0.03
        sizes.append(np.mean([len(held) for held in sets]))
    assert sizes == sorted(sizes)


def test_the_same_examples_and_seed_give_the_same_router() -> None:
    first, again, other = fit(), fit(), fit(seed=1)
    assert np.array_equal(first.head.weights_LD, again.head.weights_LD)
    assert np.array_equal(first.head.bias_L, again.head.bias_L)
    assert (first.accept, first.about) == (again.accept, again.about)
    assert np.array_equal(first.conformity_N, again.conformity_N)
    assert not np.array_equal(first.head.weights_LD, other.head.weights_LD)  # other pairs were joined


def test_the_artifact_says_what_it_was_fitted_on(artifact: RouterArtifact) -> None:
    assert artifact.encoder_sha256 == WordEncoder.sha256
    assert artifact.about["train"] == len(TRAIN)
    assert artifact.about["calibration"] == len(CALIBRATION)
    assert artifact.about["joined_pairs"] == round(len(TRAIN) * PAIRS_PER_EXAMPLE)
    assert artifact.about["seed"] == 0


def test_an_expert_with_too_few_questions_is_named() -> None:
    few = questions(MIN_EXAMPLES - 1, 0, ["sleep"])
    with pytest.raises(DataError, match=f"'sleep' has {MIN_EXAMPLES - 1} training questions; at least {MIN_EXAMPLES}"):
        fit(questions(20, 0, ["cars", ""]) + few)


def test_an_expert_without_any_question_is_named() -> None:
    with pytest.raises(DataError, match="'wine' has 0 training questions"):
        fit_router(TRAIN, CALIBRATION, [*EXPERTS, "wine"], ENCODER, NO_PASSAGES)


def test_just_enough_questions_are_enough() -> None:
    assert fit(questions(MIN_EXAMPLES, 0)).experts == ("cars", "sleep")


def test_one_expert_alone_can_be_fitted() -> None:
    """There is nothing to join."""
    train, calibration = (questions(30, seed, ["sleep", ""]) for seed in (0, 1))
    alone = fit_router(train, calibration, ["sleep"], ENCODER, NO_PASSAGES)
    assert alone.about["joined_pairs"] == 0
    assert np.mean([chosen(alone, question.query) == question.experts for question in train]) > 0.95


def test_labels_have_a_column_for_each_expert_and_one_for_none() -> None:
    asked = [LabelledQuestion("", frozenset(needed.split()), "") for needed in ("sleep", "cars sleep", "", "wine")]
    assert labels(asked, EXPERTS).tolist() == [
        [False, True, False],
        [True, True, False],
        [False, False, True],
        [False, False, False],  # somebody else's
    ]


# Thresholds


def accept_of(**probabilities_by_kind: list[float]) -> float:
    """Of one expert, from the probabilities that questions got; kinds that begin with ``needed`` need it."""
    asked = [(kind, p) for kind, probabilities in probabilities_by_kind.items() for p in probabilities * FEWEST_TO_VOTE]
    examples = [
        LabelledQuestion("", frozenset({"sleep"} if kind.startswith("needed") else ()), kind) for kind, _ in asked
    ]
    p = np.array([[probability, 1 - probability] for _, probability in asked], dtype=np.float32)
    return choose_accept(p, examples, ["sleep"])


def test_the_threshold_lies_in_the_middle_of_what_separates() -> None:
    assert accept_of(needed=[0.9, 0.71], other=[0.31, 0.1]) == pytest.approx(0.51, abs=0.011)


def test_the_threshold_goes_where_the_scores_are() -> None:
    assert 0.65 < accept_of(needed=[0.9, 0.77], other=[0.65]) < 0.77
    assert 0.27 < accept_of(needed=[0.9, 0.35], other=[0.27]) < 0.35


def test_a_rare_kind_of_question_weighs_as_much_as_a_common_one() -> None:
    """One needed question at 0.45 outweighs two others of a hundred and one, at 0.47."""
    assert accept_of(needed=[0.45], other=[0.1] * 99 + [0.47] * 2) < 0.45


def test_kinds_that_need_the_same_experts_still_count_one_by_one() -> None:
    """Hard negatives are as important as all other questions that need nobody, however few they are."""
    assert accept_of(needed=[0.3] * 10 + [0.9] * 90, other=[0.1] * 100, hard=[0.5]) > 0.5


def test_a_kind_with_very_few_questions_has_no_say() -> None:
    kinds = {"needed": (0.7, True), "other": (0.3, False)}
    asked = [
        (p, LabelledQuestion("", frozenset({"sleep"} if needed else ()), kind)) for kind, (p, needed) in kinds.items()
    ]
    asked = asked * FEWEST_TO_VOTE + [(0.25, LabelledQuestion("", frozenset({"sleep"}), "rare"))] * (FEWEST_TO_VOTE - 1)
    p = np.array([[probability, 1 - probability] for probability, _ in asked], dtype=np.float32)
    assert choose_accept(p, [question for _, question in asked], ["sleep"]) == pytest.approx(0.5, abs=0.05)


def test_between_two_equally_good_thresholds_a_worse_one_is_not_taken() -> None:
    """Good up to 0.31 and above 0.69; in between both kinds are half wrong."""
    accept = accept_of(needed=[0.31, 0.9], other=[0.69, 0.1])
    assert accept <= 0.31 or accept > 0.69


# On disk


def test_a_saved_router_loads_again_and_scores_the_same(artifact: RouterArtifact, tmp_path: Path) -> None:
    artifact.save(tmp_path)
    loaded = RouterArtifact.load(tmp_path)
    assert (loaded.experts, loaded.accept, loaded.encoder_sha256) == (
        artifact.experts,
        artifact.accept,
        artifact.encoder_sha256,
    )
    assert artifact.about.items() <= loaded.about.items()
    for question in UNSEEN:
        before, after = (
            EmbeddingRouter(ENCODER, each, NO_PASSAGES, 0.9).score(question.query) for each in (artifact, loaded)
        )
        assert before == after


def test_it_is_plain_arrays_and_a_manifest(artifact: RouterArtifact, tmp_path: Path) -> None:
    artifact.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {HEAD_FILE, WORDS_FILE, "manifest.json"}
    words = len((tmp_path / WORDS_FILE).read_text("utf-8").split("\n"))
    with np.load(tmp_path / HEAD_FILE, allow_pickle=False) as arrays:
        assert {name: arrays[name].shape for name in arrays} == {
            "weights_LD": (3, WordEncoder.width),
            "bias_L": (3,),
            "calibration_LF": (3, 4),
            "evidence_EV": (2, words),
            "prior_E": (2,),
            "conformity_N": (len(CALIBRATION),),
        }


@pytest.mark.parametrize("where", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_an_altered_byte_is_refused(artifact: RouterArtifact, tmp_path: Path, where: float) -> None:
    artifact.save(tmp_path)
    content = bytearray((tmp_path / HEAD_FILE).read_bytes())
    content[round(where * (len(content) - 1))] ^= 1
    (tmp_path / HEAD_FILE).write_bytes(content)
    with pytest.raises(ConfigError, match=r"is not the file that .* pins"):
        RouterArtifact.load(tmp_path)


@pytest.mark.parametrize("name", [HEAD_FILE, WORDS_FILE, "manifest.json"])
def test_a_missing_file_is_refused(artifact: RouterArtifact, tmp_path: Path, name: str) -> None:
    artifact.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match="missing"):
        RouterArtifact.load(tmp_path)


def test_a_head_for_another_number_of_experts_is_refused(artifact: RouterArtifact, tmp_path: Path) -> None:
    replace(artifact, experts=("cars",)).save(tmp_path)
    with pytest.raises(ConfigError, match="do not fit 1 experts"):
        RouterArtifact.load(tmp_path)


# Follow-ups


def talk(subject: str, field: str, n: int) -> list[Turn]:
    after = [
        ("and why is that?", frozenset([field])),
        ("could you explain it?", frozenset([field])),
        ("my aunt likes tea", frozenset[str]()),
        ("bread and a poem about chess and rivers", frozenset[str]()),
    ]
    said, experts = after[n % len(after)]
    return [Turn(subject, frozenset([field]), "start"), Turn(said, experts, "follow-up" if experts else "change")]


TALKS = [talk(question.query, *question.experts, n) for n, question in enumerate(questions(30, 9, EXPERTS))]


def test_turns_that_go_on_are_learnt_from_dialogues_and_kept_in_the_artifact(
    artifact: RouterArtifact, tmp_path: Path
) -> None:
    fit_follow_up(artifact, TALKS, ENCODER, NO_PASSAGES).save(tmp_path)
    router = EmbeddingRouter(ENCODER, RouterArtifact.load(tmp_path), NO_PASSAGES, 0.9)
    for before, field in (("what is the engine of a ford", "cars"), ("why does rem sleep come", "sleep")):
        for said, needed in (("and what is that?", {field}), ("my uncle likes tea", set())):
            scores = router.score(said, [before])
            assert {name for name, p in scores.experts.items() if p >= router.thresholds.accept} == needed


def test_too_few_unclear_turns_are_refused(artifact: RouterArtifact) -> None:
    with pytest.raises(DataError, match="unclear turns"):
        fit_follow_up(artifact, TALKS[:8], ENCODER, NO_PASSAGES)
    assert artifact.follow_up is None


def test_a_follow_up_head_of_another_version_is_refused(artifact: RouterArtifact, tmp_path: Path) -> None:
    learnt = fit_follow_up(artifact, TALKS, ENCODER, NO_PASSAGES).follow_up
    assert learnt is not None
    replace(artifact, follow_up=replace(learnt, weights_LD=learnt.weights_LD[:, :11])).save(tmp_path)
    with pytest.raises(ConfigError, match="train router"):
        RouterArtifact.load(tmp_path)
