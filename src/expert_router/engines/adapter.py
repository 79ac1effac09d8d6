"""A LoRA adapter as PEFT saves it, added to the weights of a GGUF model, with numpy alone.

W' = W + (alpha / rank) · B A for every module the adapter has (Hu et al. 2021). Files of llama's architecture hold the
rows of q and k in another order than transformers does (interleaved for rotary embeddings), so the delta's rows are
moved likewise. Every module must find its tensor and every shape must fit: an adapter that fits in part is refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from expert_router.artifacts import ADAPTER_CONFIG, ADAPTER_WEIGHTS, refuse_pickles
from expert_router.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_TENSOR_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_MODULE = re.compile(r"^base_model\.model\.model\.layers\.(\d+)\.(.+)\.lora_([AB])\.weight$")
_UNSUPPORTED = (
    "use_dora",
    "use_rslora",
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "alora_invocation_tokens",
)
MOST_SCALE = 1e6
"""Of alpha / rank, which is seldom above 100."""
_PERMUTED_ARCHITECTURE = "llama"


@dataclass(frozen=True, slots=True)
class LowRank:
    """One module's change: ``b_OR @ a_RI`` times the adapter's scale."""

    a_RI: NDArray[np.float32]
    b_OR: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """``modules`` by the name of the GGUF tensor they change."""

    scale: float
    modules: dict[str, LowRank]

    @property
    def rank(self) -> int:
        """That of all modules, which ``read_lora`` sees to."""
        return int(next(iter(self.modules.values())).a_RI.shape[0])

    def delta(self, tensor_name: str) -> NDArray[np.float32]:
        """Shape (O, I), as transformers orders the rows."""
        module = self.modules[tensor_name]
        return np.asarray(self.scale * (module.b_OR @ module.a_RI), dtype=np.float32)


def read_lora(folder: Path) -> LoraWeights:
    """Read what PEFT saved. Raises ``WeightsError`` for anything but plain LoRA on a decoder's linear layers."""
    try:
        refuse_pickles(folder)
        config: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8"))
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        rank, alpha = config["r"], float(config["lora_alpha"])
        scale = alpha / rank
    except ConfigError as error:
        raise WeightsError(error.message) from error
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError, SafetensorError) as error:
        raise WeightsError(f"{folder} is not a LoRA adapter as PEFT saves it: {error!r}") from error
    if type(rank) is not int or rank < 1 or not abs(scale) <= MOST_SCALE:
        raise WeightsError(
            f"The adapter in {folder} has the rank {rank!r} and the alpha {alpha}, which cannot be used."
        )
    if used := [name for name in _UNSUPPORTED if config.get(name)]:
        raise WeightsError(f"The adapter in {folder} uses {', '.join(used)}, which cannot be merged.")
    halves: dict[str, dict[str, NDArray[np.float32]]] = {}
    for name, values in tensors.items():
        match = _MODULE.match(name)
        if match is None or match.group(2) not in _TENSOR_NAMES:
            raise WeightsError(f"The adapter in {folder} changes {name}, which is no linear layer of a decoder.")
        layer, module, half = match.groups()
        tensor = f"blk.{layer}.{_TENSOR_NAMES[module]}.weight"
        halves.setdefault(tensor, {})[half] = values.astype(np.float32)
    if not halves or any(set(pair) != {"A", "B"} for pair in halves.values()):
        raise WeightsError(f"The adapter in {folder} is incomplete: a module lacks one of its two halves.")
    modules = {name: LowRank(pair["A"], pair["B"]) for name, pair in halves.items()}
    _check_modules(modules, rank, folder)
    return LoraWeights(scale, modules)


def _check_modules(modules: dict[str, LowRank], rank: int, folder: Path) -> None:
    for name, module in modules.items():
        if not _has_rank(module, rank):
            raise WeightsError(
                f"The adapter in {folder} says rank {rank}, but its {name} has halves of shape {module.a_RI.shape} and "
                f"{module.b_OR.shape}."
            )
        if not (np.isfinite(module.a_RI).all() and np.isfinite(module.b_OR).all()):
            raise WeightsError(f"The adapter in {folder} is damaged: its {name} has what is no finite number.")


def _has_rank(module: LowRank, rank: int) -> bool:
    a, b = module.a_RI, module.b_OR
    return a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1] == rank  # noqa: PLR2004 - a matrix


@dataclass(frozen=True, slots=True)
class Heads:
    """How many heads the rows of q and of k belong to, from the GGUF file's metadata."""

    architecture: str
    query: int
    key: int


class Merge:
    """Adds an adapter to tensors as they pass by, and knows in the end whether all of it was used."""

    def __init__(self, lora: LoraWeights, heads: Heads) -> None:
        self._lora = lora
        self._heads = heads
        self._left = set(lora.modules)

    def __call__(self, name: str, values_OI: NDArray[np.float32]) -> NDArray[np.float32]:
        """The merged tensor, or the same where the adapter changes nothing. Raises ``WeightsError`` on a misfit."""
        if name not in self._lora.modules:
            return values_OI
        self._left.discard(name)
        delta_OI = self._lora.delta(name)
        if delta_OI.shape != values_OI.shape:
            raise WeightsError(f"The adapter's {name} has shape {delta_OI.shape}, the base model's {values_OI.shape}.")
        return values_OI + in_gguf_order(name, delta_OI, self._heads)

    def finish(self) -> int:
        """How many modules were merged. Raises ``WeightsError`` when the model lacks one of the adapter's."""
        refuse_missing(self._left, self._lora)
        return len(self._lora.modules)


def refuse_missing(missing: set[str], lora: LoraWeights) -> None:
    """Raises ``WeightsError`` when there is a module of the adapter that the base model lacks."""
    if missing:
        raise WeightsError(
            f"{len(missing)} of the adapter's {len(lora.modules)} modules are not in the base model "
            f"({', '.join(sorted(missing)[:3])}): it was trained on another one."
        )


def in_gguf_order(name: str, rows_OI: NDArray[np.float32], heads: Heads) -> NDArray[np.float32]:
    """A tensor's output rows, from transformers' order to that of the GGUF file."""
    if heads.architecture != _PERMUTED_ARCHITECTURE:
        return rows_OI
    if name.endswith("attn_q.weight"):
        return permuted(rows_OI, heads.query)
    return permuted(rows_OI, heads.key) if name.endswith("attn_k.weight") else rows_OI


def permuted(rows_OI: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of q or k from transformers' order (halves) to that of llama's GGUF files (pairs)."""
    rows, columns = rows_OI.shape
    if rows % (2 * heads):
        raise WeightsError(f"{rows} rows cannot be shared out among {heads} heads.")
    halves = rows_OI.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
