"""The merged, requantised model on OpenVINO against PEFT on the same base: the real 135 M weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("default")]  # of the training libraries among themselves

if TYPE_CHECKING:
    from pathlib import Path

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
    from expert_router.serving.build import fetch_model
    from expert_router.settings import load_settings
    from expert_router.training.base import load_base

    _, files = fetch_model(load_settings("tiny"), BASE, progress=False)
    return load_base(next(iter(files.values())))


def compare(adapter: Path, merged: Path, cache: Path) -> float:
    from expert_router.artifacts import ADAPTER_WEIGHTS, sha256_of
    from expert_router.engines.prepared import prepare_model
    from expert_router.serving.build import fetch_model
    from expert_router.settings import load_settings
    from expert_router.training.examples import Example
    from expert_router.training.parity import check_parity
    from expert_router.types import Adapter

    locked, files = fetch_model(load_settings("tiny"), BASE, progress=False)
    weights = Adapter(merged, sha256_of(merged / ADAPTER_WEIGHTS))
    prepared = prepare_model(
        BASE, next(iter(files.values())), locked.files[0].sha256, cache, adapter=weights, progress=False
    )
    example = Example("Be brief.", "What is the capital of France?", "The capital of France is Paris.", answerable=True)
    examples = [example, replace(example, user="Count to ten.", answer="1, 2, 3, 4, 5, 6, 7, 8, 9, 10.")]
    return check_parity(load(), adapter, prepared.folder, examples).mean_difference


def test_what_is_served_is_what_was_trained_up_to_eight_bits(adapter: Path, tmp_path: Path) -> None:
    assert compare(adapter, adapter, tmp_path) < 0.5


def test_a_module_whose_rows_are_in_another_order_shows(adapter: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    tensors = load_file(adapter / "adapter_model.safetensors")
    turned = {name: np.ascontiguousarray(v[::-1]) if "lora_B" in name else v for name, v in tensors.items()}
    save_file(turned, other / "adapter_model.safetensors")
    (other / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    assert compare(adapter, other, tmp_path) > 0.5
