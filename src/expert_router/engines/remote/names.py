"""How a server that holds a base and its LoRA adapters names its models, and what each of the names stands for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from expert_router.types import Adapter, Expert

ADAPTER_HASH_DIGITS = 12
_ADAPTER = re.compile(rf".+@[0-9a-f]{{{ADAPTER_HASH_DIGITS}}}")


def served_model_names(base_model: str) -> Callable[[Expert], str]:
    """How a server is expected to name what answers for an expert: ``sleep@0123456789ab``, or its base model.

    The adapter's hash is part of the name, so that a server which still holds an older adapter is found out
    instead of answering with it. ``base_model`` serves experts that name no base of their own, and "general".
    """

    def name_of(expert: Expert) -> str:
        base = expert.base_model or base_model
        adapter = expert.adapter_for(base)
        return base if adapter is None else f"{expert.name}@{adapter.sha256[:ADAPTER_HASH_DIGITS]}"

    return name_of


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A name that a server answers to: ``base`` itself, or with ``adapter``."""

    name: str
    base: str
    adapter: Adapter | None = None

    @classmethod
    def of(cls, expert: Expert, name: str) -> ServedModel:
        """What ``name`` stands for: the expert's adapter whose hash it ends with, else a base."""
        for base, adapter in expert.adapters.items():
            if name.endswith(f"@{adapter.sha256[:ADAPTER_HASH_DIGITS]}"):
                return cls(name, base, adapter)
        return cls(name, name)

    @property
    def path(self) -> Path | None:
        """Where the adapter lies, on this machine."""
        return None if self.adapter is None else self.adapter.path.absolute()

    @property
    def how_to_serve(self) -> str:
        if self.adapter is not None:
            return f"Load the adapter there (vLLM: --enable-lora --lora-modules {self.name}={self.adapter.path})."
        return (
            f"Serve it there (vLLM: --served-model-name {self.name}), or set engine.base_model to one that it serves."
        )


def is_adapter_name(name: str) -> bool:
    return _ADAPTER.fullmatch(name) is not None
