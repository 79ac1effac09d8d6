"""A sentence to a vector: MiniLM (Reimers and Gurevych 2019; Wang et al. 2020) in int8, mean-pooled, of length one.

Runs on onnxruntime and tokenizers; no torch. Two forms: the base model as it was published, or one fine-tuned for
routing, whose artifact holds the transformer layers while the word embeddings are read from the base model's file.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_router.artifacts import read_artifact, sha256_of
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

ENCODER_FILE = "encoder.onnx"
MAX_TOKENS = 128
"""Longer questions are cut: what they are about is said by then."""
MAX_CHARACTERS = 100 * MAX_TOKENS
"""No more of a text is looked at: a megabyte takes the tokenizer seconds, and would be remembered whole."""
REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class WordTable:
    """``table_VD`` int8 and ``scale_V1`` float32, mapped from the base model's file: only rows in use are read."""

    table_VD: NDArray[np.int8]
    scale_V1: NDArray[np.float32]

    @classmethod
    def read(cls, base: Path, ranges: dict[str, int]) -> WordTable:
        """``ranges`` gives rows, width, and the byte offsets of table and scale in the file."""
        rows, width = ranges["rows"], ranges["width"]
        table = np.memmap(base, np.int8, "r", ranges["table"], (rows, width))
        scale = np.memmap(base, np.uint8, "r", ranges["scale"], (rows * 4,))  # float32, perhaps not aligned
        return cls(table, np.frombuffer(scale.tobytes(), np.float32).reshape(rows, 1))

    def vectors(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Shape (*ids, D)."""
        return np.asarray(self.table_VD[ids] * self.scale_V1[ids], dtype=np.float32)


class SentenceEncoder:
    """Thread-safe. ``threads`` is how many texts ``encode_all`` embeds at once; one takes one.

    ``words`` is ``None`` for a model that looks its word embeddings up itself.
    ``sha256`` identifies the model file: a head fitted on one encoder must not be used on another.
    """

    def __init__(self, model: Path, tokenizer: Path, threads: int, words: WordTable | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a question is over before others are awake; encode_all has a text for each
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library raises bare exceptions of its own
            raise ConfigError(f"The encoder {model} cannot be loaded: {error}") from error
        self._tokenizer = load_tokenizer(tokenizer)
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._words = words
        self._threads = threads
        self._recent: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._recent_lock = threading.Lock()
        self.sha256 = sha256_of(model)

    def encode(self, text: str) -> NDArray[np.float32]:
        """Shape (D,), of length one. The latest texts are remembered: routing and retrieval ask for the same."""
        text = text[:MAX_CHARACTERS]
        with self._recent_lock:
            known = self._recent.get(text)
        if known is not None:
            return known
        vector = self._encode(text)
        with self._recent_lock:
            self._recent[text] = vector
            if len(self._recent) > REMEMBERED:
                self._recent.popitem(last=False)
        return vector

    def _encode(self, text: str) -> NDArray[np.float32]:
        ids_1T = np.array([self._tokenizer.encode(text[:MAX_CHARACTERS]).ids], dtype=np.int64)
        feeds: dict[str, Any] = {"attention_mask": np.ones_like(ids_1T)}
        if self._words is not None:
            feeds["inputs_embeds"] = self._words.vectors(ids_1T)
        else:
            feeds |= {"input_ids": ids_1T, "token_type_ids": np.zeros_like(ids_1T)}
        hidden_TD = self._session.run(None, {k: v for k, v in feeds.items() if k in self._inputs})[0][0]
        return _unit(hidden_TD.mean(axis=0))

    def encode_all(self, texts: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """One vector per text, in order. A batch would pad to its longest text, which costs more than it saves."""
        pool = ThreadPoolExecutor(self._threads, "encoder")
        try:
            yield from pool.map(self._encode, texts)
        finally:
            pool.shutdown(cancel_futures=True)  # who stops listening does not wait for the rest


def load_tokenizer(path: Path) -> Tokenizer:
    """The encoder's tokenizer, which cuts at ``MAX_TOKENS``. Raises ``ConfigError``."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions of its own
        raise ConfigError(f"The tokenizer {path} cannot be loaded: {error}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def load_tuned_encoder(artifact: Path, base: Path, tokenizer: Path, threads: int) -> SentenceEncoder:
    """The fine-tuned encoder in ``artifact``, with the words of ``base``. Raises ``ConfigError`` on a mismatch."""
    manifest = read_artifact(artifact)
    try:
        base_sha256, ranges = manifest["base_sha256"], manifest["words"]
        if sha256_of(base) != base_sha256:
            raise ConfigError(f"The encoder in {artifact} was made from another base model than {base}.")
        words = WordTable.read(base, ranges)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ConfigError(f"{artifact} is not an encoder artifact: {error!r}") from error
    return SentenceEncoder(artifact / ENCODER_FILE, tokenizer, threads, words)


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), dtype=np.float32)
