"""Proof that what is served is what was trained: PEFT's logits against those of the prepared, requantised model.

Both read the same conversations with the same answers, token by token; over the answers the likeliest next token must
be the same nearly always. What is left is the rounding to eight bits. A wrong permutation of q and k, a missing module
or a wrong scale shows at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import openvino as ov
import torch
from peft import PeftModel

from expert_router.engines.prepared import GRAPH
from expert_router.training.base import template_ids
from expert_router.training.expert import conversation

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from expert_router.engines.prepared import PreparedModel
    from expert_router.training.base import Base
    from expert_router.training.examples import Example


@dataclass(frozen=True, slots=True)
class Parity:
    """``same_top`` is the share of answer tokens whose likeliest token is the same; differences are of logits."""

    conversations: int
    tokens: int
    same_top: float
    largest_difference: float
    mean_difference: float


LEAST_SAME_TOP = 0.98
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "KV_CACHE_PRECISION": "f16"}
"""As ``engine.reproducible`` serves: what is left is the weights' rounding to eight bits, not that of activations."""


class ServedModel:
    """The prepared graph, for its logits; of a stack those of one slot."""

    def __init__(self, prepared: PreparedModel, slot: int = 0) -> None:
        compiled = ov.Core().compile_model(prepared.folder / GRAPH, "CPU", EXACT)
        self._request = compiled.create_infer_request()
        self._vocabulary = prepared.vocabulary
        self._first = slot * prepared.vocabulary

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Shape (T, V): after each token, what might come next."""
        self._request.reset_state()
        row_1T = np.array([ids], dtype=np.int64) + self._first
        feeds = {
            "input_ids": row_1T,
            "attention_mask": np.ones_like(row_1T),
            "position_ids": np.arange(len(ids), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        if self._vocabulary:
            feeds["sampled_tokens_indices"] = np.zeros(1, dtype=np.int64)  # of the only row
        logits_TV = self._request.infer(feeds)["logits"][0]
        return np.array(logits_TV[:, self._first : self._first + self._vocabulary or None], dtype=np.float32)


def check_parity(base: Base, adapter: Path, model: ServedModel, examples: Iterable[Example]) -> Parity:
    """Compare over the answers of ``examples``. ``adapter`` is PEFT's folder."""
    trained = PeftModel.from_pretrained(base.model.float(), str(adapter)).eval()
    same: list[NDArray[np.bool_]] = []
    differences: list[NDArray[np.float32]] = []
    for example in examples:
        ids, start = _tokens(base, example)
        with torch.no_grad():
            expected_AV = trained(torch.tensor([ids])).logits[0, start - 1 : -1].float().numpy()
        found_AV = model.logits(ids)[start - 1 : -1]
        same.append(expected_AV.argmax(axis=1) == found_AV.argmax(axis=1))
        differences.append(np.abs(expected_AV - found_AV))
    agreed = np.concatenate(same)
    return Parity(
        conversations=len(same),
        tokens=len(agreed),
        same_top=float(agreed.mean()),
        largest_difference=max(float(each.max()) for each in differences),
        mean_difference=float(np.mean([each.mean() for each in differences])),
    )


def _tokens(base: Base, example: Example) -> tuple[list[int], int]:
    """Prompt and answer, and where the answer starts."""
    ids = template_ids(base.tokenizer, conversation(example), to_answer=True)
    return ids + base.tokenizer(example.answer, add_special_tokens=False)["input_ids"], len(ids)
