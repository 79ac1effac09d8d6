"""What every engine that loads weights asks of a request before it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_router.errors import ContextLengthError, NotReadyError

if TYPE_CHECKING:
    from collections.abc import Container

    from expert_router.types import Adapter, Expert


def base_and_adapter(expert: Expert, default_model: str, known: Container[str]) -> tuple[str, Adapter | None]:
    """What is meant to answer for the expert. Raises ``NotReadyError`` for a base that is not ``known``."""
    base, adapter = expert.embedded_on(expert.base_model or default_model)
    if base not in known:
        raise NotReadyError(f"The base model {base!r} of {expert.name!r} is not in models.lock.")
    return base, adapter


def room_after(prompt_tokens: int, context_tokens: int, model: str) -> int:
    """So many tokens an answer may have at most. Raises ``ContextLengthError`` where there is no room for one."""
    if prompt_tokens >= context_tokens:
        raise ContextLengthError(
            f"The conversation is too long: {model} holds {context_tokens} tokens, the answer included. Shorten it or "
            "start a new one.",
            param="messages",
        )
    return context_tokens - prompt_tokens
