"""A llama of 36 kB with random weights and a tokenizer of single bytes: everything about a model but its wits."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import gguf
import numpy as np

from expert_router.engines.prepared import PreparedModel, prepare_model

if TYPE_CHECKING:
    from pathlib import Path

Quantisation = gguf.GGMLQuantizationType

WIDTH, HEADS, FEED_FORWARD = 64, 2, 128
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_llama(
    path: Path, quantisation: Quantisation = Quantisation.Q4_0, *, context_tokens: int = 256, seed: int = 0
) -> dict[str, np.ndarray]:
    """Write the model; returns each tensor's values as the file holds them, dequantised."""
    writer = gguf.GGUFWriter(path, "llama")
    _add_hyperparameters(writer, context_tokens)
    _add_tokenizer(writer)
    values = {}
    for name, tensor in _tensors(np.random.default_rng(seed)).items():
        kind = quantisation if tensor.ndim > 1 else Quantisation.F32
        packed = gguf.quants.quantize(tensor, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        values[name] = gguf.quants.dequantize(packed, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def prepare_llama(folder: Path, *, name: str = "random", context_tokens: int = 256, seed: int = 0) -> PreparedModel:
    """The model made ready for the embedded engine; ``folder`` is the cache."""
    path = folder / f"{name}.gguf"
    write_llama(path, context_tokens=context_tokens, seed=seed)
    return prepare_model(name, path, hashlib.sha256(path.read_bytes()).hexdigest(), folder, progress=False)


def byte_tokens() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in the bytes' order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in printable)
    stand_ins = {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [stand_ins.get(byte, chr(byte)) for byte in range(256)]


def _add_hyperparameters(writer: gguf.GGUFWriter, context_tokens: int) -> None:
    writer.add_name("Tiny Random Llama")
    writer.add_languages(["en", "de"])
    writer.add_block_count(1)
    writer.add_context_length(context_tokens)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokens = [*byte_tokens(), *SPECIAL, "he"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges(["h e"])
    writer.add_unk_token_id(256)
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_pad_token_id(258)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tensors(random: np.random.Generator) -> dict[str, np.ndarray]:
    key_width = WIDTH // HEADS
    shapes = {
        "token_embd.weight": (256 + len(SPECIAL) + 1, WIDTH),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.attn_q.weight": (WIDTH, WIDTH),
        "blk.0.attn_k.weight": (key_width, WIDTH),
        "blk.0.attn_v.weight": (key_width, WIDTH),
        "blk.0.attn_output.weight": (WIDTH, WIDTH),
        "blk.0.ffn_norm.weight": (WIDTH,),
        "blk.0.ffn_gate.weight": (FEED_FORWARD, WIDTH),
        "blk.0.ffn_up.weight": (FEED_FORWARD, WIDTH),
        "blk.0.ffn_down.weight": (WIDTH, FEED_FORWARD),
        "output_norm.weight": (WIDTH,),
    }
    return {
        name: np.ones(shape, np.float32) if len(shape) == 1 else random.normal(0, 0.05, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
