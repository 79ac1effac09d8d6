"""Fit the embedding router: embed the questions, fit the linear head, calibrate it, choose the thresholds.

Training questions fit the weights; calibration questions, never seen by them, set the probabilities and thresholds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from expert_router.conversation import is_courtesy, plain
from expert_router.data.dialogues import THANKS
from expert_router.errors import DataError
from expert_router.routing.embedding import EmbeddingRouter, RouterArtifact, label_evidence
from expert_router.routing.evidence import fit_evidence, words_of
from expert_router.routing.follow_up import follow_up_features, surely_claimed
from expert_router.routing.head import fit_calibration, fit_head
from expert_router.training.augment import joined_pairs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from expert_router.data.dialogues import Turn
    from expert_router.data.labelled import LabelledQuestion
    from expert_router.knowledge.terms import TermIndex
    from expert_router.ports import TextEncoder

L2 = 1.0
MIN_EXAMPLES = 8
PAIRS_PER_EXAMPLE = 0.08
"""Questions that need two experts are rare in data and are made by joining two questions."""

CALIBRATION_PAIRS = 0.25
"""More of them here, so that the few real questions on several topics do not set the scale alone."""
FEWEST_TO_VOTE = 30
FOLDS = 5
FOLLOW_UP_L2 = 1.0
FOLLOW_UP_COVERAGE = 0.95
"""Whatever serving is set to: from 0.8 to 0.95 the same 600 written turns are unclear (659 at 0.99)."""
_GRID = np.round(np.arange(0.2, 0.81, 0.02), 2)


def fit_router(
    train: Sequence[LabelledQuestion],
    calibration: Sequence[LabelledQuestion],
    experts: Sequence[str],
    encoder: TextEncoder,
    terms: TermIndex,
    *,
    seed: int = 0,
    progress: bool = False,
) -> RouterArtifact:
    """Deterministic for the same examples, encoder, passages and seed.

    Raises ``DataError`` when an expert has too few examples.
    """
    for expert in experts:
        count = sum(expert in example.experts for example in train)
        if count < MIN_EXAMPLES:
            raise DataError(
                f"The expert {expert!r} has {count} training questions; at least {MIN_EXAMPLES} are needed."
            )
    fitting = [*train, *joined_pairs(train, round(len(train) * PAIRS_PER_EXAMPLE), seed)]
    held_out = [*calibration, *joined_pairs(calibration, round(len(calibration) * CALIBRATION_PAIRS), seed + 1)]
    questions = ((example.query, example.experts) for example in train)
    evidence = fit_evidence([*questions, *passage_words(terms, train)], experts)
    vectors = embed([example.query for example in [*fitting, *held_out]], encoder, progress=progress)
    head = fit_head(vectors[: len(fitting)], labels(fitting, experts), L2)
    logits_NL = head.logits(vectors[len(fitting) :])
    evidence_NLX = np.stack(
        [label_evidence(example.query, experts, evidence, terms.evidence(example.query)) for example in held_out]
    )
    calibrated = fit_calibration(logits_NL, evidence_NLX, labels(held_out, experts))
    accept = choose_accept(calibrated.probabilities(logits_NL, evidence_NLX), held_out, experts)
    real = len(calibration)
    conformity_N = _conformity(logits_NL, evidence_NLX, labels(held_out, experts))[:real]
    about = {
        "l2": L2,
        "seed": seed,
        "train": len(train),
        "calibration": len(calibration),
        "joined_pairs": len(fitting) - len(train),
    }
    return RouterArtifact(head, evidence, calibrated, tuple(experts), accept, conformity_N, encoder.sha256, about)


def fit_follow_up(
    artifact: RouterArtifact, dialogues: Sequence[Sequence[Turn]], encoder: TextEncoder, terms: TermIndex
) -> RouterArtifact:
    """The artifact that also knows which turns go on with what was said before.

    Fitted on turns after the first that no expert claims for sure by themselves: they need whom the turn before them
    needed, or nobody. Raises ``DataError`` when the dialogues have too few of either.
    """
    router = EmbeddingRouter(encoder, artifact, terms, FOLLOW_UP_COVERAGE)
    features, goes_on = [], []
    for dialogue in dialogues:
        before: frozenset[str] = frozenset()
        for turn in dialogue:
            alone = router.score(turn.said)
            claim = max(alone.experts.values())
            unsure = not surely_claimed(router.thresholds, claim, alone.none)
            if before and unsure and turn.experts in {before, frozenset()} and not is_courtesy(turn.said):
                vector_D = encoder.encode(plain(turn.said))
                features.append(follow_up_features(turn.said, claim, alone.none, vector_D))
                goes_on.append([bool(turn.experts)])
            before = before if turn.kind == THANKS else turn.experts
    labels_N1 = np.array(goes_on, dtype=bool).reshape(-1, 1)
    if min(labels_N1.sum(), (~labels_N1).sum()) < MIN_EXAMPLES:
        raise DataError(f"The dialogues have fewer than {MIN_EXAMPLES} unclear turns that go on, or that do not.")
    return replace(artifact, follow_up=fit_head(np.stack(features), labels_N1, FOLLOW_UP_L2))


def passage_words(terms: TermIndex, questions: Sequence[LabelledQuestion]) -> Iterator[tuple[str, frozenset[str]]]:
    """Each passage's words as a further example of its expert, but for numbers and what questions for nobody use too.

    Those would count the style of prose, not the field: what is left are mostly names.
    """
    elsewhere = {word for question in questions if not question.experts for word in words_of(question.query)}
    for passage, owner in zip(terms.passages, terms.owner_P, strict=True):
        own = {word for word in words_of(f"{passage.title} {passage.text}") if not word.isdigit()} - elsewhere
        yield " ".join(sorted(own)), frozenset([terms.experts[owner]])


def labels(examples: Sequence[LabelledQuestion], experts: Sequence[str]) -> NDArray[np.bool_]:
    """Shape (N, E + 1): one column per expert, then none of them."""
    return np.array(
        [[e in example.experts for e in experts] + [not example.experts] for example in examples], dtype=bool
    )


def choose_accept(
    probabilities_NL: NDArray[np.float32], questions: Sequence[LabelledQuestion], experts: Sequence[str]
) -> float:
    """The accept threshold that gets most questions exactly right, every kind of question weighing the same.

    Of all that are no more than one standard error worse than the best, the one nearest to one half is taken (Breiman
    et al., 1984, section 3.4.3): the probabilities are calibrated, and a few hundred questions settle no more than
    that. Kinds with very few questions do not count.
    """
    needed_NE = labels(questions, experts)[:, :-1]
    kinds = np.array([question.kind for question in questions])
    counts = Counter(kinds.tolist())
    voting = [kind for kind, count in sorted(counts.items()) if count >= min(FEWEST_TO_VOTE, max(counts.values()))]
    right_GN = np.array([((probabilities_NL[:, :-1] >= t) == needed_NE).all(axis=1) for t in _GRID])
    accuracy_GK = np.stack([right_GN[:, kinds == kind].mean(axis=1) for kind in voting], axis=1)
    mean_G = accuracy_GK.mean(axis=1)
    best_K = accuracy_GK[mean_G.argmax()]
    counts_K = np.array([counts[kind] for kind in voting])
    standard_error = np.sqrt((best_K * (1 - best_K) / counts_K).sum()) / len(voting)
    as_good = _GRID[mean_G >= mean_G.max() - standard_error]
    accept = float(min(as_good, key=lambda threshold: (abs(threshold - 0.5), threshold)))
    return round(accept, 3)


def _conformity(
    logits_NL: NDArray[np.float32], evidence_NLX: NDArray[np.float32], needed_NL: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Shape (N,): how probable what each question needs is, the least of several, to a calibration without it."""
    fold_N = np.arange(len(logits_NL)) % FOLDS
    conformity_N = np.empty(len(logits_NL), dtype=np.float32)
    for fold in range(FOLDS):
        out_N = fold_N == fold
        calibrated = fit_calibration(logits_NL[~out_N], evidence_NLX[~out_N], needed_NL[~out_N])
        probabilities_NL = calibrated.probabilities(logits_NL[out_N], evidence_NLX[out_N])
        conformity_N[out_N] = np.where(needed_NL[out_N], probabilities_NL, 1.0).min(axis=1)
    return conformity_N


def embed(texts: Sequence[str], encoder: TextEncoder, desc: str = "embed", *, progress: bool) -> NDArray[np.float32]:
    """Shape (N, D); ``desc`` stands before the progress bar."""
    vectors = tqdm(
        encoder.encode_all(texts), total=len(texts), desc=desc, unit="question", disable=None if progress else True
    )
    return np.stack(list(vectors))
