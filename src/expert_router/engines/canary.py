"""Proof that a model is the one meant: it must give the answer that was recorded for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from expert_router.artifacts import ADAPTER_WEIGHTS, read_artifact
from expert_router.errors import ConfigError, NotReadyError
from expert_router.types import GenerationParams
from expert_router.weights import CANARY_TOKENS, Canary

if TYPE_CHECKING:
    from expert_router.engines.loaded_model import LoadedModel
    from expert_router.types import Adapter

ADAPTER_REMEDY = "`git checkout experts/` brings one that ships back; roll other experts back, or train them anew."


def adapter_canary(adapter: Adapter) -> Canary:
    """The recorded answer of an adapter whose files are what its manifest says. Raises ``NotReadyError`` otherwise."""
    try:
        manifest = read_artifact(adapter.path)
        if manifest["files"][ADAPTER_WEIGHTS] != adapter.sha256:
            raise NotReadyError(
                f"The adapter in {adapter.path} is another one than the expert's manifest names. {ADAPTER_REMEDY}"
            )
        prompt, answer = manifest["canary"]["prompt"], manifest["canary"]["answer"]
        if not all(isinstance(text, str) and text.strip() for text in (prompt, answer)):
            raise NotReadyError(f"The adapter in {adapter.path} has an empty canary, which proves nothing.")
        return Canary(prompt, answer)
    except (ConfigError, KeyError, TypeError) as error:
        problem = str(error).rstrip(".")
        raise NotReadyError(f"The adapter in {adapter.path} cannot be used: {problem}. {ADAPTER_REMEDY}") from error


def check_canary(model: LoadedModel, canary: Canary, slot: int = 0) -> None:
    """Proof that the loaded model is the one meant. Raises ``NotReadyError`` when it answers otherwise."""
    answer = canary_answer(model, canary.prompt, slot)
    compare(model.name, canary, answer, "Delete its folder under the cache's prepared/ and start again.")


def compare(name: str, canary: Canary, answer: str, remedy: str) -> None:
    """Raises ``NotReadyError`` when the answer does not begin with the recorded one; ``remedy`` says what to do."""
    if not answer.startswith(canary.answer):
        raise NotReadyError(
            f"{name} is refused: asked {canary.prompt!r} it answered {answer!r} instead of {canary.answer!r}. {remedy}"
        )


def canary_answer(model: LoadedModel, prompt: str, slot: int = 0) -> str:
    """What the model says to a prompt alone: greedily, without instructions, ``CANARY_TOKENS`` at most."""
    return asyncio.run(_greedy_answer(model, prompt, slot))


async def _greedy_answer(model: LoadedModel, prompt: str, slot: int) -> str:
    input_ids = model.encode([{"role": "user", "content": prompt}])
    params = GenerationParams(max_tokens=CANARY_TOKENS)
    batches = model.generate(input_ids, params, slot=slot, repetition_penalty=1.0)  # it was recorded without one
    return model.decode([token async for batch in batches for token in batch.ids])
