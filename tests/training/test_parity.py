"""The merged, requantised model on OpenVINO against PEFT on the same base: the real 135 M weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_gguf import Quantisation, write_llama, write_lora

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("default")]  # of the training libraries among themselves

if TYPE_CHECKING:
    from pathlib import Path

    from expert_router.types import Quantization

BASE = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter of rank 2 on every linear layer, as PEFT saves it."""
    import torch
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    model = get_peft_model(
        load().model, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(str(folder))
    return folder


def load() -> object:
    from expert_router.serving.parts import fetch_model
    from expert_router.settings import load_settings
    from expert_router.training.base import load_base

    _, files = fetch_model(load_settings("tiny"), BASE, progress=False)
    return load_base(next(iter(files.values())))


def compare(adapter: Path, served: Path, cache: Path, *, slot: int = 0) -> float:
    """With ``served`` merged into the base, or stacked on it in a slot beside adapters that do nothing."""
    from expert_router.artifacts import ADAPTER_WEIGHTS, sha256_of
    from expert_router.engines.prepared import prepare_model, prepare_stack
    from expert_router.serving.parts import fetch_model
    from expert_router.settings import load_settings
    from expert_router.training.examples import Example
    from expert_router.training.parity import ServedModel, check_parity
    from expert_router.types import Adapter

    locked, files = fetch_model(load_settings("tiny"), BASE, progress=False)
    (weights,), sha256 = files.values(), locked.files[0].sha256
    meant = Adapter(served, sha256_of(served / ADAPTER_WEIGHTS))
    prepared = prepare_model(BASE, weights, sha256, cache, adapter=None if slot else meant, progress=False)
    if slot:
        nothing = write_lora(cache / "nothing", weights, size=0.0).folder
        idle = Adapter(nothing, sha256_of(nothing / ADAPTER_WEIGHTS))
        prepared = prepare_stack(prepared, [meant if number == slot else idle for number in (1, 2)], progress=False)
    example = Example("Be brief.", "What is the capital of France?", "The capital of France is Paris.", answerable=True)
    examples = [example, replace(example, user="Count to ten.", answer="1, 2, 3, 4, 5, 6, 7, 8, 9, 10.")]
    return check_parity(load(), adapter, ServedModel(prepared, slot), examples).mean_difference


@pytest.mark.parametrize("slot", [0, 2])
def test_what_is_served_is_what_was_trained_up_to_eight_bits(adapter: Path, tmp_path: Path, slot: int) -> None:
    assert compare(adapter, adapter, tmp_path, slot=slot) < 0.5


def test_a_module_whose_rows_are_in_another_order_shows(adapter: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    tensors = load_file(adapter / "adapter_model.safetensors")
    turned = {name: np.ascontiguousarray(v[::-1]) if "lora_B" in name else v for name, v in tensors.items()}
    save_file(turned, other / "adapter_model.safetensors")
    (other / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    assert compare(adapter, other, tmp_path) > 0.5


@pytest.mark.parametrize("quantization", ["q8_0", "q4_0"])
def test_the_served_graph_has_the_weights_of_the_file_it_was_made_of(
    tmp_path: Path, quantization: Quantization
) -> None:
    """Of random weights: that the library reads a quantisation right, which it does not of every one (Q4_1)."""
    import torch

    from expert_router.artifacts import sha256_of
    from expert_router.engines.gguf import requantise
    from expert_router.engines.prepared import prepare_model
    from expert_router.training.base import load_base
    from expert_router.training.parity import ServedModel
    from expert_router.types import Adapter

    source, held = tmp_path / "source.gguf", tmp_path / "held.gguf"
    write_llama(source, Quantisation.F32, blocks=2)
    requantise(source, held, quantization=quantization, progress=False)
    nothing = write_lora(tmp_path / "lora", source, size=0.0).folder
    adapter = Adapter(nothing, sha256_of(nothing / "adapter_model.safetensors"), quantization)
    served = prepare_model("tiny", source, sha256_of(source), tmp_path, adapter=adapter, progress=False)
    ids = [257, *b"A nap of twenty minutes helps.", 258]
    with torch.no_grad():
        expected = load_base(held).model(torch.tensor([ids])).logits[0].numpy()
        whole = load_base(source).model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(ServedModel(served).logits(ids), expected, atol=1e-4)
    assert np.abs(whole - expected).max() > 1e-3  # the rounding shows, so that right and wrong can be told apart
