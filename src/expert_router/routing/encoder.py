"""A sentence to a vector: MiniLM (Reimers and Gurevych 2019; Wang et al. 2020) in int8, mean-pooled, of length one.

Runs on onnxruntime and tokenizers; no torch. The session's threads do not spin, so that it leaves the cores to the
engine beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MAX_TOKENS = 128
"""Longer questions are cut: what they are about is said by then."""


class SentenceEncoder:
    """``model`` is an ONNX file with inputs input_ids and attention_mask; its first output is (N, tokens, D)."""

    def __init__(self, model: Path, tokenizer: Path, threads: int) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
            self._tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # both libraries raise bare exceptions of their own
            raise ConfigError(f"The encoder in {model.parent} cannot be loaded: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._inputs = {value.name for value in self._session.get_inputs()}

    def encode(self, text: str) -> NDArray[np.float32]:
        """Shape (D,), of length one."""
        ids = np.array([self._tokenizer.encode(text).ids], dtype=np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        hidden_TD = self._session.run(None, {k: v for k, v in feeds.items() if k in self._inputs})[0][0]
        return np.asarray(_unit(hidden_TD.mean(axis=0)), dtype=np.float32)

    def encode_all(self, texts: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """One vector per text, one at a time: a batch pads to its longest text, which costs more than it saves."""
        return (self.encode(text) for text in texts)


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), dtype=np.float32)
