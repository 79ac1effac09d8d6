"""The default router: a sentence encoder with a linear head, what the words say, and what the experts can read about.

The three are calibrated together.

The artifact is plain arrays (``head.npz``, no pickle), the words they stand for (``words.txt``) and a manifest with the
labels, the thresholds and the encoder they were fitted on; an encoder with other bytes is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_router.artifacts import read_artifact, write_artifact
from expert_router.conversation import context, is_courtesy, leans_back, plain, points_back, says_little
from expert_router.errors import ConfigError
from expert_router.routing.conformal import conformal_threshold
from expert_router.routing.evidence import WordEvidence
from expert_router.routing.follow_up import follow_up_features
from expert_router.routing.head import Calibration, LinearHead
from expert_router.types import Scores, Thresholds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from expert_router.knowledge.terms import TermIndex
    from expert_router.ports import TextEncoder
    from expert_router.routing.added import AddedHead

GOES_ON = 0.55
"""So probable it must be that a turn goes on: to stay with the wrong expert is worse than to leave the right one."""
SURELY_NOBODYS = 0.95
"""A turn of few words that is less surely for no expert may go on with the turn before it."""
VERSION_DIGITS = 12
HEAD_FILE = "head.npz"
WORDS_FILE = "words.txt"
EVIDENCE_FEATURES = 2
"""Beside the head's logit and the shift: one from the words, one from the passages."""


@dataclass(frozen=True, slots=True)
class RouterArtifact:
    """``experts`` names the head's rows; its last row is none-of-them. ``encoder_sha256`` pins the encoder's file.

    ``accept`` is the probability from which an expert is needed; ``conformity_N`` are the probabilities that the
    calibration questions gave what they truly need, from which prediction sets are made. ``follow_up`` tells turns
    that go on with what was said before; without dialogues to fit it a rule does.
    """

    head: LinearHead
    evidence: WordEvidence
    calibration: Calibration
    experts: tuple[str, ...]
    accept: float
    conformity_N: NDArray[np.float32]
    encoder_sha256: str
    about: dict[str, Any]
    follow_up: LinearHead | None = None

    @property
    def version(self) -> str | None:
        """The first digits of its manifest's hash, which pins its files; ``None`` before it was loaded from them."""
        if "files" not in self.about:
            return None
        return hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:VERSION_DIGITS]

    def save(self, folder: Path) -> None:
        arrays = io.BytesIO()
        follow_up: dict[str, Any] = {}
        if self.follow_up is not None:
            follow_up = {"follow_up_1F": self.follow_up.weights_LD, "follow_up_bias": self.follow_up.bias_L}
        np.savez(
            arrays,
            weights_LD=self.head.weights_LD,
            bias_L=self.head.bias_L,
            calibration_LF=self.calibration.weights_LF,
            evidence_EV=self.evidence.weights_EV,
            prior_E=self.evidence.prior_E,
            conformity_N=self.conformity_N,
            **follow_up,
        )
        words = "\n".join(self.evidence.vocabulary).encode()
        about = {
            **self.about,
            "experts": list(self.experts),
            "accept": self.accept,
            "encoder_sha256": self.encoder_sha256,
        }
        write_artifact(folder, {HEAD_FILE: arrays.getvalue(), WORDS_FILE: words}, about)

    @classmethod
    def load(cls, folder: Path) -> RouterArtifact:
        """Raises ``ConfigError`` when the folder is not a whole router artifact."""
        manifest = read_artifact(folder)
        try:
            with np.load(folder / HEAD_FILE, allow_pickle=False) as arrays:
                head = LinearHead(arrays["weights_LD"], arrays["bias_L"])
                calibration = Calibration(arrays["calibration_LF"])
                weights_EV, prior_E = arrays["evidence_EV"], arrays["prior_E"]
                conformity_N = arrays["conformity_N"]
                follow_up = None
                if "follow_up_1F" in arrays:
                    follow_up = LinearHead(arrays["follow_up_1F"], arrays["follow_up_bias"])
            words = tuple((folder / WORDS_FILE).read_text("utf-8").split("\n"))
            evidence = WordEvidence(words, weights_EV, prior_E)
            experts = tuple(manifest["experts"])
            accept = float(manifest["accept"])
            artifact = cls(
                head,
                evidence,
                calibration,
                experts,
                accept,
                conformity_N,
                manifest["encoder_sha256"],
                manifest,
                follow_up,
            )
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ConfigError(
                f"{folder} is not a router artifact ({error}). Run: expert-router train router"
            ) from error
        labels = len(experts) + 1
        shapes = (head.weights_LD.shape[0], head.bias_L.shape, calibration.weights_LF.shape, weights_EV.shape)
        if shapes != (labels, (labels,), (labels, EVIDENCE_FEATURES + 2), (len(experts), len(words))):
            raise ConfigError(
                f"{folder}: its arrays {shapes} do not fit {len(experts)} experts and {len(words)} words."
            )
        return artifact


class EmbeddingRouter:
    """``terms`` is the index of the experts' passages, which the artifact's calibration weighs too.

    ``coverage`` is how often a prediction set holds what a question needs. ``added`` are experts that were taught
    later; ``hidden`` ones of the artifact that were taken away: what needs them needs nobody.
    """

    name = "embedding"

    def __init__(
        self,
        encoder: TextEncoder,
        artifact: RouterArtifact,
        terms: TermIndex,
        coverage: float,
        *,
        added: Sequence[AddedHead] = (),
        hidden: frozenset[str] = frozenset(),
    ) -> None:
        self.experts = (*(name for name in artifact.experts if name not in hidden), *(head.name for head in added))
        self.version = _version(artifact, added, hidden)
        self._added = added
        self._hidden = hidden
        self.thresholds = Thresholds(artifact.accept, conformal_threshold(artifact.conformity_N, coverage))
        self._encoder = encoder
        self._artifact = artifact
        self._terms = terms

    def score(self, query: str, history: Sequence[str] = ()) -> Scores:
        """Score the question; one that no expert claims and that may lean back is read with what it may be about."""
        asked = plain(query)
        alone = self._probabilities(asked)
        about = context(history, self._stands) if not is_courtesy(query) and self._goes_on(query, alone) else ""
        if not about:
            return self._scores(alone)
        subject, whole = self._probabilities(about), self._probabilities(f"{about} {asked}")
        return self._scores([*map(max, subject[:-1], whole[:-1]), min(subject[-1], whole[-1])])

    def close(self) -> None:
        """Nothing is held beyond memory."""

    def _goes_on(self, turn: str, alone: Sequence[float]) -> bool:
        """Whether a turn is about what was said before; ``alone`` is how it scores by itself."""
        claim, none = max(alone[:-1], default=0.0), alone[-1]
        if self.thresholds.claimed(claim, none):
            return False
        if self._artifact.follow_up is None:
            return points_back(turn) or (says_little(turn) and none < SURELY_NOBODYS)
        features_1F = follow_up_features(turn, claim, none)[None, :]
        return bool(self._artifact.follow_up.probabilities(features_1F)[0, 0] > GOES_ON)

    def _stands(self, turn: str) -> bool:
        """Whether a turn begins a subject."""
        return not leans_back(turn) and not self._goes_on(turn, self._probabilities(turn))

    def _probabilities(self, text: str) -> list[float]:
        """Of every expert, then of none-of-them."""
        artifact, vector_D = self._artifact, self._encoder.encode(text)
        passages = self._terms.evidence(text)
        evidence_1LX = label_evidence(text, artifact.experts, artifact.evidence, passages)[None, :]
        probabilities_1L = artifact.calibration.probabilities(artifact.head.logits(vector_D[None, :]), evidence_1LX)
        *trained, none = (float(p) for p in probabilities_1L[0])
        of = dict(zip(artifact.experts, trained, strict=True))
        missed = max((of.pop(name) for name in self._hidden if name in of), default=0.0)
        none = max(none, missed * (1 - max(of.values(), default=0.0)))
        for head in self._added:
            of[head.name] = head.probability(vector_D, text, passages.get(head.name, 0.0))
            none *= 1 - of[head.name]
        return [*of.values(), none]

    def _scores(self, probabilities: list[float]) -> Scores:
        return Scores(dict(zip(self.experts, probabilities, strict=False)), probabilities[-1])


def _version(artifact: RouterArtifact, added: Sequence[AddedHead], hidden: frozenset[str]) -> str:
    """The artifact's, and a digest of what came and went since: routers that decide otherwise have another name."""
    version = artifact.version or EmbeddingRouter.name
    if not added and not hidden:
        return version
    changes = hashlib.sha256(repr(sorted(hidden)).encode())
    for head in added:
        changes.update(head.name.encode() + head.weights_D.tobytes() + head.calibration_F.tobytes())
    return f"{version}+{changes.hexdigest()[:VERSION_DIGITS]}"


def label_evidence(
    text: str, experts: Sequence[str], words: WordEvidence, passages: Mapping[str, float]
) -> NDArray[np.float32]:
    """Shape (L, 2): what words and passages say for each expert, then for none-of-them the strongest of them.

    ``passages`` are ``TermIndex.evidence``; an expert without any has no evidence from them.
    """
    passages_E = np.array([passages.get(expert, 0.0) for expert in experts], dtype=np.float32)
    features_EX = np.stack([words.strongest(text), passages_E], axis=1)
    return np.concatenate([features_EX, features_EX.max(axis=0, keepdims=True)])
