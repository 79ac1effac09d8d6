"""What an adapter says for certain and its base does not: recorded after training, asked for whenever it is loaded.

The answer must come out the same on another processor and from rounded weights. So of each prompt's answer only the
beginning counts, as far as the adapter is sure of every token, and of the prompts the one with the longest is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from expert_router.training.base import template_ids
from expert_router.weights import CANARY_TOKENS, Canary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

MOST_TOKENS = CANARY_TOKENS - 4
"""A tokenizer may cut the same words otherwise when they are asked for."""
LEAST_TOKENS = 4
HALF_CHARACTER = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer makes of the first bytes of a character whose others are not there."""
SURE = 0.8
"""The least probability of a recorded token: the runner-up then has a quarter of it at most."""


def record_canary(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Canary | None:
    """Of a PEFT ``model``, which is left in evaluation mode; ``None`` when it is sure of no answer but its base's."""
    model.eval()
    sure: list[tuple[int, float, Canary]] = []
    for prompt in prompts:
        if sure and sure[-1][0] == MOST_TOKENS:
            break  # none could be longer
        ids = template_ids(tokenizer, [{"role": "user", "content": prompt}], to_answer=True)
        tokens, least = _sure_tokens(model, ids, tokenizer.eos_token_id)
        with model.disable_adapter():
            differs = _likeliest(model, [*ids, *tokens])[len(ids) - 1 : -1] != tokens
        if differs and len(tokens) >= LEAST_TOKENS:
            answer = str(tokenizer.decode(tokens)).rstrip(HALF_CHARACTER).strip()
            sure.append((len(tokens), least, Canary(prompt, answer)))
    return max(sure, key=lambda each: each[:2])[2] if sure else None


def _sure_tokens(model: Any, ids: Sequence[int], end: int | None) -> tuple[list[int], float]:
    """The greedy answer as far as every token is sure, and the least probability of them."""
    tokens: list[int] = []
    least = 1.0
    for _ in range(MOST_TOKENS):
        probability, token = _logits(model, [*ids, *tokens])[-1].softmax(-1).max(-1)
        if float(probability) < SURE or int(token) == end:
            break
        tokens.append(int(token))
        least = min(least, float(probability))
    return tokens, least


def _likeliest(model: Any, ids: Sequence[int]) -> list[int]:
    """After each of the tokens."""
    return [int(token) for token in _logits(model, ids).argmax(-1)]


def _logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids], device=model.device)).logits[0].float()
    return logits
