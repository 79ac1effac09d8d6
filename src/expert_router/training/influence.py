"""How much each layer of a decoder matters: what changes the hidden state least can be left out with the least harm.

Block influence (Men et al. 2024, ShortGPT): 1 - the cosine between what goes into a layer and what comes out of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from expert_router.training.base import template_ids
from expert_router.training.expert import conversation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from expert_router.training.base import Base
    from expert_router.training.examples import Example


def layer_influences(base: Base, examples: Sequence[Example], *, progress: bool) -> list[float]:
    """One figure a layer, the mean over all tokens of the examples, prompts and answers; 0 is no influence at all."""
    model = base.model.float().eval()
    layers = model.get_decoder().layers
    totals = torch.zeros(len(layers), dtype=torch.float64)
    hooks = [
        layer.register_forward_hook(_adding_to(totals, number), with_kwargs=True) for number, layer in enumerate(layers)
    ]
    tokens = 0
    try:
        for example in tqdm(examples, desc="influence", unit="prompt", disable=None if progress else True):
            turns = [*conversation(example), {"role": "assistant", "content": example.answer}]
            ids = template_ids(base.tokenizer, turns, to_answer=False)
            with torch.no_grad():
                model(torch.tensor([ids], device=model.device))
            tokens += len(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return [float(total) / tokens for total in totals]


def least_influential(influences: Sequence[float], count: int) -> list[int]:
    """The numbers of so many layers, in ascending order."""
    return sorted(sorted(range(len(influences)), key=lambda layer: influences[layer])[:count])


def _adding_to(totals: torch.Tensor, number: int) -> Callable[..., None]:
    def add(_: Any, positional: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        before = positional[0] if positional else named["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        totals[number] += (1 - torch.cosine_similarity(before, after, dim=-1)).sum().double().cpu()

    return add
