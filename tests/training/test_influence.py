"""Which layers matter, and that a file without some of them is the model without them: on random weights."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tiny_gguf import write_llama

from expert_router.training.examples import Example
from expert_router.weights.gguf_file import leave_out_layers

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("default")]  # of the training libraries among themselves

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = 4
EXAMPLE = Example("Be brief.", "How long should a nap be?", "Twenty minutes. [1]", answerable=True)
IDS = [257, *b"A nap of twenty minutes helps for hours.", 258]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "whole.gguf"
    write_llama(path, blocks=LAYERS)
    return path


def load(path: Path) -> Any:
    from expert_router.training.base import load_base

    return load_base(path)


def logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([IDS])).logits[0].numpy()
    return found


def test_a_file_without_layers_is_the_model_without_them_in_training_and_in_serving(source: Path) -> None:
    import torch

    from expert_router.artifacts import sha256_of
    from expert_router.engines.prepared import prepare_model
    from expert_router.training.parity import ServedModel

    small = source.with_name("small.gguf")
    leave_out_layers(source, small, [0, 2])
    model = load(source).model
    whole = logits(model)
    kept = [model.model.layers[number] for number in (1, 3)]
    for number, layer in enumerate(kept):
        layer.self_attn.layer_idx = number
    model.model.layers, model.config.num_hidden_layers = torch.nn.ModuleList(kept), 2
    expected = logits(model)
    assert np.abs(expected - whole).max() > 0.01  # the layers did something
    np.testing.assert_allclose(logits(load(small).model), expected, atol=1e-5)
    served = prepare_model("small", small, sha256_of(small), source.parent / "cache", progress=False)
    assert np.abs(ServedModel(served).logits(IDS) - expected).max() < 0.05 * np.abs(expected).max()


def test_the_influence_is_one_minus_the_cosine_over_all_tokens(source: Path) -> None:
    import torch

    from expert_router.training.influence import layer_influences

    base = load(source)
    examples = [EXAMPLE, replace(EXAMPLE, user="And at night?")]
    influences = layer_influences(base, examples, progress=False)
    sums, tokens = np.zeros(LAYERS), 0
    for example in examples:
        turns = [("system", example.system), ("user", example.user), ("assistant", example.answer)]
        text = base.tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in turns], tokenize=False)
        ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            states = base.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        cosines = [torch.cosine_similarity(a, b, dim=-1).sum() for a, b in pairwise(states)]
        sums += len(ids) - np.array(cosines)
        tokens += len(ids)
    assert influences[:-1] == pytest.approx(sums[:-1] / tokens, abs=1e-4)  # after the last comes the norm
    assert all(influence > 0 for influence in influences)


def test_a_layer_that_does_nothing_has_no_influence_and_goes_first(source: Path) -> None:
    import torch

    from expert_router.training.influence import layer_influences, least_influential

    base = load(source)
    idle = base.model.model.layers[2]
    with torch.no_grad():
        idle.self_attn.o_proj.weight.zero_()
        idle.mlp.down_proj.weight.zero_()
    influences = layer_influences(base, [EXAMPLE], progress=False)
    assert influences[2] == pytest.approx(0.0, abs=1e-6)
    assert least_influential(influences, 1) == [2]
    assert least_influential(influences, 3) == sorted(least_influential(influences, 3))
    assert not base.model.model.layers[0]._forward_hooks
