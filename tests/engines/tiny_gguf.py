"""A llama of 36 kB with random weights and a tokenizer of single bytes: everything about a model but its wits.

And adapters for it, or for any other GGUF file of its kind, random too, in the files that PEFT writes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gguf
import numpy as np
from safetensors.numpy import save_file

from expert_router.engines.prepared import PreparedModel, prepare_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from expert_router.types import Adapter

Quantisation = gguf.GGMLQuantizationType

WIDTH, HEADS, FEED_FORWARD = 64, 2, 128
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""A block's matrices: llama.cpp's names and those of transformers."""


def write_llama(
    path: Path,
    quantisation: Quantisation = Quantisation.Q4_0,
    *,
    context_tokens: int = 256,
    seed: int = 0,
    blocks: int = 1,
    architecture: str = "llama",
    certainty: float = 1.0,
) -> dict[str, np.ndarray]:
    """Write the model; returns each tensor's values as the file holds them, dequantised.

    ``certainty`` multiplies the logits. With random weights one is so little that no token ever gets a probability to
    speak of, with 20 the model can learn to be sure.
    """
    writer = gguf.GGUFWriter(path, architecture)
    _add_hyperparameters(writer, context_tokens, blocks)
    _add_tokenizer(writer)
    values = {}
    tensors = _tensors(np.random.default_rng(seed), blocks)
    tensors["output_norm.weight"] *= np.float32(certainty)
    for name, tensor in tensors.items():
        kind = quantisation if tensor.ndim > 1 else Quantisation.F32
        packed = gguf.quants.quantize(tensor, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        values[name] = gguf.quants.dequantize(packed, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def prepare_llama(
    folder: Path,
    *,
    name: str = "random",
    adapter: Adapter | None = None,
    context_tokens: int = 256,
    seed: int = 0,
) -> PreparedModel:
    """The model made ready for the embedded engine; ``folder`` is the cache."""
    path = folder / f"{name}.gguf"
    write_llama(path, context_tokens=context_tokens, seed=seed)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return prepare_model(name, path, digest, folder, adapter=adapter, progress=False)


@dataclass(frozen=True)
class LoraFiles:
    """A random adapter as it lies on disk. ``pairs`` are A and B by the name of the tensor that they change."""

    folder: Path
    scale: float
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def delta(self, tensor: str) -> np.ndarray:
        """alpha / r * B A, in transformers' order of rows."""
        a, b = self.pairs[tensor]
        return self.scale * (b.astype(np.float64) @ a.astype(np.float64))

    def tensors(self) -> dict[str, np.ndarray]:
        """What the weights' file holds, by PEFT's names."""
        return {
            f"{peft_name(tensor)}.lora_{half}.weight": values
            for tensor, pair in self.pairs.items()
            for half, values in zip("AB", pair, strict=True)
        }

    def rewrite(self, changes: Mapping[str, np.ndarray | None]) -> None:
        """Write the weights anew with some tensors replaced, added, or left out where there is ``None``."""
        changed = {**self.tensors(), **changes}
        kept = {name: values for name, values in changed.items() if values is not None}
        save_file(kept, self.folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def configure(self, **changes: object) -> None:
        path = self.folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def write_lora(
    folder: Path,
    model: Path,
    *,
    modules: Sequence[str] = tuple(MODULES),
    rank: int = 2,
    alpha: int = 6,
    size: float = 0.1,
    dtype: type[np.floating] = np.float32,
    seed: int = 0,
) -> LoraFiles:
    """An adapter of all blocks of the GGUF file ``model``; ``size`` is the deviation of A's and B's numbers."""
    random = np.random.default_rng(seed)
    pairs = {}
    for tensor in gguf.GGUFReader(model).tensors:
        if tensor.name.split(".")[-2] in modules:
            inputs, outputs = (int(n) for n in tensor.shape)  # gguf names the innermost axis first
            pairs[tensor.name] = (
                random.normal(0, size, (rank, inputs)).astype(dtype),
                random.normal(0, size, (outputs, rank)).astype(dtype),
            )
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "bias": "none",
        "target_modules": [MODULES[module].split(".")[1] for module in modules],
        "use_dora": False,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    files = LoraFiles(folder, alpha / rank, pairs)
    files.rewrite({})
    return files


def peft_name(tensor: str) -> str:
    """``blk.0.attn_q.weight`` as PEFT names the module."""
    _, block, module, _ = tensor.split(".")
    return f"base_model.model.model.layers.{block}.{MODULES[module]}"


def byte_tokens() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in the bytes' order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in printable)
    stand_ins = {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [stand_ins.get(byte, chr(byte)) for byte in range(256)]


def _add_hyperparameters(writer: gguf.GGUFWriter, context_tokens: int, blocks: int) -> None:
    writer.add_name("Tiny Random Llama")
    writer.add_languages(["en", "de"])
    writer.add_block_count(blocks)
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


def _tensors(random: np.random.Generator, blocks: int) -> dict[str, np.ndarray]:
    key_width = WIDTH // HEADS
    block = {
        "attn_norm": (WIDTH,),
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (key_width, WIDTH),
        "attn_v": (key_width, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_norm": (WIDTH,),
        "ffn_gate": (FEED_FORWARD, WIDTH),
        "ffn_up": (FEED_FORWARD, WIDTH),
        "ffn_down": (WIDTH, FEED_FORWARD),
    }
    shapes = {
        "token_embd.weight": (256 + len(SPECIAL) + 1, WIDTH),
        **{f"blk.{number}.{name}.weight": shape for number in range(blocks) for name, shape in block.items()},
        "output_norm.weight": (WIDTH,),
    }
    return {
        name: np.ones(shape, np.float32) if len(shape) == 1 else random.normal(0, 0.05, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
