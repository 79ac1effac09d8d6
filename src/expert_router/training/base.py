"""A base model and its tokenizer to train on: from a GGUF file, a local folder, or the hub."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from expert_router.errors import TrainingError
from expert_router.training.unsloth import load_with_unsloth

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Quantization = Literal["none", "nf4"]
Accelerator = Literal["none", "unsloth"]


@dataclass(frozen=True, slots=True)
class Base:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator = "none"


def template_ids(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping[str, str]], *, to_answer: bool
) -> list[int]:
    """A conversation as the base's chat template words it; ``to_answer`` ends it where an answer begins."""
    text = tokenizer.apply_chat_template(list(turns), add_generation_prompt=to_answer, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def load_base(
    source: str | Path,
    *,
    quantization: Quantization = "none",
    accelerator: Accelerator = "none",
    max_tokens: int = 2048,
    token: str | None = None,
) -> Base:
    """``source`` is a GGUF file, a folder as transformers saves it, or a name on the hub.

    A GGUF file is dequantised: what is trained are the weights that are served. ``unsloth`` must have been imported by
    ``import_unsloth`` before this module was, and wants to know the longest example, ``max_tokens``. Raises
    ``TrainingError``.
    """
    try:
        if str(source).endswith(".gguf"):
            return _from_gguf(Path(source), quantization)
        if accelerator == "unsloth":
            return Base(*load_with_unsloth(str(source), quantization, max_tokens, token), accelerator)
        options = {"token": token} if token else {}
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=_dtype(),
            quantization_config=_nf4() if quantization == "nf4" else None,
            use_safetensors=True,
            **options,
        )
    except (OSError, ValueError, ImportError, RuntimeError, struct.error) as error:  # the last: a file that breaks off
        raise TrainingError(
            f"The base model {source} cannot be loaded for training: {error}. A gated model needs HF_TOKEN; "
            "a local folder needs config.json, the weights and the tokenizer."
        ) from error
    return Base(model, tokenizer)


def _from_gguf(path: Path, quantization: Quantization) -> Base:
    if quantization == "nf4":
        raise TrainingError("nf4 starts from full weights: give a folder or a hub name as the base, not a GGUF file.")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    packed = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32, **_unpacked())
    about = packed.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "dtype", "torch_dtype"):
        about.pop(key, None)
    # Rebuilt: a model that was read from GGUF counts as quantised, and peft refuses to train it.
    model = AutoModelForCausalLM.from_config(type(packed.config)(**about), dtype=_dtype())
    model.load_state_dict(packed.state_dict())
    return Base(model, tokenizer)


def _unpacked() -> dict[str, Any]:
    try:
        from transformers import GgufConfig  # noqa: PLC0415 - older releases unpack always and lack it
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _nf4() -> Any:
    """QLoRA's four-bit base (Dettmers et al. 2023)."""
    from transformers import BitsAndBytesConfig  # noqa: PLC0415

    if not torch.cuda.is_available():
        raise TrainingError("nf4 needs an NVIDIA GPU, and there is none: leave --quantization out.")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32
