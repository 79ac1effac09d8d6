"""Export a fine-tuned encoder as int8 ONNX without its word embeddings, which stay in the base model's file.

Weights become int8 per channel, activations uint8 at run time (onnxruntime's dynamic quantisation). Weights keep to
seven bits, so that processors without VNNI, whose 16-bit sums would overflow, compute the same.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

from expert_router.artifacts import sha256_of, write_artifact
from expert_router.routing.encoder import ENCODER_FILE, WordTable

if TYPE_CHECKING:
    from transformers import BertModel

OPSET = 17
TABLE_NAME, SCALE_NAME = "word_embeddings.weight_q", "word_embeddings.weight_scale"


class _FromWordVectors(nn.Module):
    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.bert(inputs_embeds=inputs_embeds, attention_mask=attention_mask).last_hidden_state


def export_encoder(bert: BertModel, base_onnx: Path, folder: Path, about: dict[str, Any]) -> None:
    """Write ``encoder.onnx`` and its manifest to ``folder``. ``base_onnx`` is the int8 file that keeps the words."""
    bert = bert.cpu().eval()
    bert.config._attn_implementation = "eager"  # noqa: SLF001 - the one form that exports without data-dependent masks
    words = torch.randn(1, 12, bert.config.hidden_size)
    axes = {0: "n", 1: "t"}
    with tempfile.TemporaryDirectory() as temporary:
        full, small = Path(temporary) / "full.onnx", Path(temporary) / ENCODER_FILE
        torch.onnx.export(
            _FromWordVectors(bert),
            (words, torch.ones(1, 12, dtype=torch.long)),
            str(full),
            input_names=["inputs_embeds", "attention_mask"],
            output_names=["last_hidden_state"],
            dynamic_axes={"inputs_embeds": axes, "attention_mask": axes, "last_hidden_state": axes},
            opset_version=OPSET,
            dynamo=False,
        )
        quantize_dynamic(full, small, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
        table = {"base_sha256": sha256_of(base_onnx), "words": word_ranges(base_onnx)}
        write_artifact(folder, {ENCODER_FILE: small.read_bytes()}, {**about, **table})


def word_ranges(base_onnx: Path) -> dict[str, int]:
    """Where the int8 word embeddings (V, D) and their float32 scales (V, 1) lie in the base model's file."""
    content = base_onnx.read_bytes()
    tensors = {t.name: t for t in onnx.load_model_from_string(content).graph.initializer}
    (table,) = [t for name, t in tensors.items() if name.endswith(TABLE_NAME)]
    (scale,) = [t for name, t in tensors.items() if name.endswith(SCALE_NAME)]
    rows, width = table.dims
    ranges = {
        "rows": rows,
        "width": width,
        "table": content.index(table.raw_data),
        "scale": content.index(scale.raw_data),
    }
    read = WordTable.read(base_onnx, ranges)
    expected = onnx.numpy_helper.to_array(table)[:64] * onnx.numpy_helper.to_array(scale)[:64]
    if not np.array_equal(read.vectors(np.arange(64)), expected):
        raise ValueError(f"the word embeddings of {base_onnx} are not stored as plain int8 rows")
    return ranges
