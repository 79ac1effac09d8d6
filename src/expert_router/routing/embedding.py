"""The default router: a sentence encoder with a linear head, what the words say, and what the experts can read about.

The three are calibrated together.

The artifact is plain arrays (``head.npz``, no pickle), the words they stand for (``words.txt``) and a manifest with the
labels, the thresholds and the encoder they were fitted on; an encoder with other bytes is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from expert_router.artifacts import read_artifact, write_artifact
from expert_router.conversation import is_courtesy, plain
from expert_router.errors import ConfigError
from expert_router.routing.conformal import conformal_threshold
from expert_router.routing.evidence import WordEvidence
from expert_router.routing.follow_up import FEATURES, SURELY_NOBODYS, FollowUps
from expert_router.routing.head import Calibration, LinearHead
from expert_router.types import Scores, Thresholds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from expert_router.knowledge.terms import TermIndex
    from expert_router.ports import TextEncoder
    from expert_router.routing.added import AddedHead

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
        np.savez_compressed(
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
        try:
            manifest = read_artifact(folder)
        except ConfigError as error:
            raise ConfigError(
                f"{error} `git checkout artifacts/` brings back the router that ships; a new one: "
                "expert-router train router"
            ) from error
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
        except (KeyError, TypeError, ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
            raise ConfigError(
                f"{folder} is not a router artifact ({error}). Run: expert-router train router"
            ) from error
        labels = len(experts) + 1
        shapes = (head.weights_LD.shape[0], head.bias_L.shape, calibration.weights_LF.shape, weights_EV.shape)
        if shapes != (labels, (labels,), (labels, EVIDENCE_FEATURES + 2), (len(experts), len(words))):
            raise ConfigError(
                f"{folder}: its arrays {shapes} do not fit {len(experts)} experts and {len(words)} words."
            )
        if follow_up is not None and follow_up.weights_LD.shape != (1, FEATURES + head.weights_LD.shape[1]):
            raise ConfigError(
                f"{folder} was fitted by another version, which told follow-ups otherwise. "
                "Run: expert-router train router"
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
        self._follow_ups = FollowUps(artifact.follow_up, self.thresholds, self._probabilities, encoder.encode)

    def score(self, query: str, history: Sequence[str] = ()) -> Scores:
        """Score the question; one that goes on with what was said before is read with that, too."""
        asked = plain(query)
        alone = self._probabilities(asked)
        if is_courtesy(query):  # nobody's, whatever it sounds like
            return self._scores([*(min(p, 1 - SURELY_NOBODYS) for p in alone[:-1]), max(alone[-1], SURELY_NOBODYS)])
        about = self._follow_ups.about(query, alone, history) if self.experts else ""
        if not about:
            return self._scores(alone)
        return self._scores(self._together(self._probabilities(about), self._probabilities(f"{about} {asked}")))

    def close(self) -> None:
        """Nothing is held beyond memory."""

    def _together(self, subject: Sequence[float], whole: Sequence[float]) -> list[float]:
        """Of a subject and of it with what goes on with it; whom the subject does not need must be the surer."""
        accept, for_nobody = self.thresholds.accept, max(subject[:-1]) < self.thresholds.accept
        pairs = zip(subject[:-1], whole[:-1], strict=True)
        experts = [max(s, w) if for_nobody or s >= accept else (s + w) / 2 for s, w in pairs]
        return [*experts, min(subject[-1], whole[-1])]

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
