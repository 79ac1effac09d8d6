"""Unsloth (https://github.com/unslothai/unsloth): the same training by faster kernels, on one NVIDIA GPU.

Unsloth rewrites parts of transformers, PEFT and TRL when it is imported, and so has to come before them: call
``import_unsloth`` first, and only then import the other modules of training.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from expert_router.errors import TrainingError

if TYPE_CHECKING:
    from expert_router.training.base import Quantization
    from expert_router.training.expert import ExpertTraining

CHECKPOINTING = "unsloth"
"""Activations are computed anew in the backward pass: its own way, which saves memory and costs little time."""


def import_unsloth(base: str) -> None:
    """Raises ``TrainingError`` when the base, the machine or the installed packages do not allow it."""
    if base.endswith(".gguf"):
        raise TrainingError(
            f"Unsloth does not train from a GGUF file ({base}): name with --base the folder or the hub name of the "
            "full weights, like mistralai/Mistral-7B-Instruct-v0.3, or leave --accelerator out."
        )
    try:
        import torch

        if not torch.cuda.is_available():
            raise TrainingError("Unsloth needs an NVIDIA GPU, and there is none: leave --accelerator out.")
        import_module("unsloth")
    except (ImportError, NotImplementedError, RuntimeError, AttributeError) as error:  # whatever its patches miss
        raise TrainingError(
            f"Unsloth cannot be imported ({error}): install it as docs/training.md says, or leave --accelerator out."
        ) from error


def load_with_unsloth(source: str, quantization: Quantization, max_tokens: int, token: str | None) -> tuple[Any, Any]:
    """The model and its tokenizer; ``max_tokens`` is the longest example. Raises what Unsloth raises."""
    model, tokenizer = import_module("unsloth").FastLanguageModel.from_pretrained(
        model_name=source,
        max_seq_length=max_tokens,
        dtype=None,  # bfloat16 where the GPU has it
        load_in_4bit=quantization == "nf4",
        use_gradient_checkpointing=CHECKPOINTING,
        token=token,
        use_exact_model_name=True,  # else a hub name is exchanged for Unsloth's own copy of the weights
    )
    return model, tokenizer


def adapter_by_unsloth(model: Any, training: ExpertTraining) -> Any:
    """The model with the adapter that ``build_trainer`` asks PEFT for otherwise."""
    return import_module("unsloth").FastLanguageModel.get_peft_model(
        model,
        r=training.rank,
        lora_alpha=training.alpha,
        lora_dropout=training.dropout,
        target_modules="all-linear",
        bias="none",
        use_gradient_checkpointing=CHECKPOINTING,
        random_state=training.seed,
        max_seq_length=training.max_tokens,
    )
