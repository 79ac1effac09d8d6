"""The default router: a sentence encoder and a calibrated linear head, read from one artifact folder.

The artifact is plain arrays (``head.npz``, no pickle) and a manifest with the labels, the thresholds and the encoder
they were fitted on; an encoder with other bytes is refused.
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_router.artifacts import read_artifact, write_artifact
from expert_router.errors import ConfigError
from expert_router.routing.head import LinearHead
from expert_router.types import Scores, Thresholds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from expert_router.routing.encoder import SentenceEncoder

HEAD_FILE = "head.npz"
FOLLOW_UP_WORDS = 8
"""A turn with at most this many words may lean on the turn before it."""


@dataclass(frozen=True, slots=True)
class RouterArtifact:
    """``experts`` names the head's rows; its last row is none-of-them. ``encoder_sha256`` pins the encoder's file."""

    head: LinearHead
    experts: tuple[str, ...]
    thresholds: Thresholds
    encoder_sha256: str
    about: dict[str, Any]

    def save(self, folder: Path) -> None:
        arrays = io.BytesIO()
        np.savez(arrays, weights_LD=self.head.weights_LD, bias_L=self.head.bias_L)
        about = {
            **self.about,
            "experts": list(self.experts),
            "thresholds": asdict(self.thresholds),
            "encoder_sha256": self.encoder_sha256,
        }
        write_artifact(folder, {HEAD_FILE: arrays.getvalue()}, about)

    @classmethod
    def load(cls, folder: Path) -> RouterArtifact:
        """Raises ``ConfigError`` when the folder is not a whole router artifact."""
        manifest = read_artifact(folder)
        try:
            with np.load(folder / HEAD_FILE, allow_pickle=False) as arrays:
                head = LinearHead(arrays["weights_LD"], arrays["bias_L"])
            experts = tuple(manifest["experts"])
            artifact = cls(head, experts, Thresholds(**manifest["thresholds"]), manifest["encoder_sha256"], manifest)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ConfigError(
                f"{folder} is not a router artifact ({error}). Run: expert-router train router"
            ) from error
        if head.weights_LD.shape[0] != len(experts) + 1 or head.bias_L.shape != (len(experts) + 1,):
            raise ConfigError(
                f"{folder}: the head has {head.weights_LD.shape[0]} rows for {len(experts)} experts and none."
            )
        return artifact


class EmbeddingRouter:
    name = "embedding"

    def __init__(self, encoder: SentenceEncoder, artifact: RouterArtifact) -> None:
        self.experts = artifact.experts
        self.thresholds = artifact.thresholds
        self._encoder = encoder
        self._head = artifact.head

    def score(self, query: str, history: Sequence[str] = ()) -> Scores:
        """Score the question; a short one that no expert claims is read together with the turn before it."""
        alone = self._probabilities(query)
        if history and alone[-1] > self.thresholds.accept and len(query.split()) <= FOLLOW_UP_WORDS:
            return self._scores(self._probabilities(f"{history[-1]} {query}"))
        return self._scores(alone)

    def close(self) -> None:
        """Nothing is held beyond memory."""

    def _probabilities(self, text: str) -> list[float]:
        return [float(p) for p in self._head.probabilities(self._encoder.encode(text)[None, :])[0]]

    def _scores(self, probabilities: list[float]) -> Scores:
        return Scores(dict(zip(self.experts, probabilities, strict=False)), probabilities[-1])
