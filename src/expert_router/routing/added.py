"""What a few examples teach of one more expert: a row of weights beside the router's own, which stay as they were.

The router that is there keeps every weight, so adding an expert can change no decision but by the expert's own claim:
what it claims is no longer for nobody, and everything else is as before.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from expert_router.artifacts import MANIFEST, read_artifact, write_artifact
from expert_router.errors import ConfigError
from expert_router.routing.evidence import strongest_word
from expert_router.routing.head import sigmoid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

HEAD_FILE = "head.npz"


@dataclass(frozen=True, slots=True)
class AddedHead:
    """``weights_D`` and ``bias`` make a logit of a question's embedding, ``words`` are those that speak for the expert.

    ``calibration_F`` makes a probability of it all: the logit's scale, the weight of the strongest word, that of the
    passages, the shift. ``encoder_sha256`` pins the encoder that it was fitted on.
    """

    name: str
    weights_D: NDArray[np.float32]
    bias: float
    words: Mapping[str, float]
    calibration_F: NDArray[np.float32]
    encoder_sha256: str

    def probability(self, vector_D: NDArray[np.float32], text: str, passages: float) -> float:
        """That the question needs the expert; ``passages`` is what its texts say (``TermIndex.evidence``)."""
        scale, word, passage, shift = self.calibration_F
        logit = float(vector_D @ self.weights_D) + self.bias
        return float(sigmoid(scale * logit + word * strongest_word(self.words, text) + passage * passages + shift))

    def save(self, folder: Path) -> None:
        arrays = io.BytesIO()
        words = list(self.words)
        np.savez_compressed(
            arrays,
            weights_D=self.weights_D,
            bias=np.float32(self.bias),
            words=np.array(words, dtype=np.str_),
            word_weights=np.array([self.words[word] for word in words], dtype=np.float32),
            calibration_F=self.calibration_F,
        )
        about = {"kind": "added head", "name": self.name, "encoder_sha256": self.encoder_sha256}
        write_artifact(folder, {HEAD_FILE: arrays.getvalue()}, about)

    @classmethod
    def load(cls, folder: Path) -> AddedHead:
        """Raises ``ConfigError`` when the folder does not hold one."""
        manifest = read_artifact(folder)
        try:
            with np.load(folder / HEAD_FILE, allow_pickle=False) as arrays:
                words = zip(arrays["words"].tolist(), arrays["word_weights"].tolist(), strict=True)
                return cls(
                    manifest["name"],
                    arrays["weights_D"],
                    float(arrays["bias"]),
                    dict(words),
                    arrays["calibration_F"],
                    manifest["encoder_sha256"],
                )
        except (KeyError, TypeError, ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
            raise ConfigError(f"{folder} is not what an added expert was taught: {error}") from error


def load_added(folder: Path, encoder_sha256: str) -> AddedHead | None:
    """The head in a folder; ``None`` when there is none yet, or it was fitted on another encoder.

    Raises ``ConfigError`` when it is damaged.
    """
    if not (folder / MANIFEST).is_file():
        return None
    head = AddedHead.load(folder)
    return head if head.encoder_sha256 == encoder_sha256 else None
