"""Adapters stacked around one copy of the weights: each slot computes what the base with that adapter would."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops
from tiny_gguf import LoraFiles, prepare_llama, write_llama, write_lora

from expert_router.artifacts import sha256_of
from expert_router.engines.adapter import read_lora
from expert_router.engines.gguf import read_facts
from expert_router.engines.prepared import GRAPH, PreparedModel, prepare_model, prepare_stack
from expert_router.engines.stacking import stack_adapters
from expert_router.errors import WeightsError
from expert_router.types import Adapter

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

IDS = np.array([[5, 17, 40, 9, 33, 2]], dtype=np.int64)
GROUPS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> PreparedModel:
    return prepare_llama(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def loras(base: PreparedModel, tmp_path_factory: pytest.TempPathFactory) -> list[LoraFiles]:
    """Of different rank, and one that changes two kinds of layers only."""
    weights, folder = base.folder.parents[1] / "random.gguf", tmp_path_factory.mktemp("runs")
    return [
        write_lora(folder / "all", weights, rank=2, size=0.3, seed=1),
        write_lora(folder / "some", weights, rank=3, size=0.3, seed=2, modules=("attn_k", "ffn_down")),
    ]


@pytest.fixture(scope="module")
def stack(base: PreparedModel, loras: list[LoraFiles]) -> PreparedModel:
    return prepare_stack(base, [adapter_in(lora) for lora in loras], progress=False)


def adapter_in(lora: LoraFiles) -> Adapter:
    return Adapter(lora.folder, sha256_of(lora.folder / "adapter_model.safetensors"))


def run(model: Any, ids: NDArray[np.int64], **inputs: object) -> NDArray[np.float32]:
    """Shape (rows, positions, logits)."""
    rows, positions = ids.shape
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    request = ov.Core().compile_model(model, "CPU", exact).create_infer_request()
    request.infer(
        {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.tile(np.arange(positions), (rows, 1)),
            "beam_idx": np.arange(rows, dtype=np.int32),
            **inputs,
        }
    )
    return np.array(request.get_tensor("logits").data)


def from_stack(stack: PreparedModel, ids: NDArray[np.int64], slots: list[int]) -> NDArray[np.float32]:
    """The logits of all slots, shape (rows, positions, slots, vocabulary)."""
    first = np.array(slots, dtype=np.int64)[:, None] * stack.vocabulary
    logits = run(ov.Core().read_model(stack.folder / GRAPH), ids + first, sampled_tokens_indices=np.arange(len(ids)))
    return logits.reshape(*ids.shape, -1, stack.vocabulary)


def with_deltas(base: PreparedModel, lora: LoraFiles | None) -> NDArray[np.float32]:
    """The base's own logits with ``lora`` added to its weights in full precision, layer by layer."""
    model = ov.Core().read_model(base.folder / GRAPH)
    products = [
        n for n in model.get_ordered_ops() if n.get_type_name() == "MatMul" and n.get_attributes()["transpose_b"]
    ]
    products.sort(key=lambda node: int(node.get_friendly_name().rpartition("_")[2]))
    for node, name in zip(products, GROUPS, strict=False):  # the last is the head
        if lora is not None and (tensor := f"blk.0.{name}.weight") in lora.pairs:
            delta = ops.constant(lora.delta(tensor).astype(np.float32))
            node.input(1).replace_source_output(ops.add(node.input_value(1), delta).output(0))
    return run(model, IDS)


def test_each_slot_computes_what_the_base_with_its_adapter_would(
    base: PreparedModel, stack: PreparedModel, loras: list[LoraFiles]
) -> None:
    wanted = [with_deltas(base, lora) for lora in (None, *loras)]
    assert np.abs(wanted[1] - wanted[0]).max() > 0.1  # the adapters do change something
    assert np.abs(wanted[2] - wanted[0]).max() > 0.1
    for slot, logits in enumerate(wanted):
        got = from_stack(stack, IDS, [slot])
        np.testing.assert_allclose(got[:, :, slot], logits, atol=0.01 * np.ptp(logits))
        assert (np.delete(got, slot, axis=2) < -1e8).all()  # no other slot's ids are ever chosen


def test_rows_of_one_batch_are_computed_each_with_its_own(stack: PreparedModel) -> None:
    together = from_stack(stack, np.repeat(IDS, 3, axis=0), [2, 0, 1])
    for row, slot in enumerate([2, 0, 1]):
        alone = from_stack(stack, IDS, [slot])
        np.testing.assert_allclose(together[row, :, slot], alone[0, :, slot], atol=1e-3)


def test_all_modules_are_counted_and_a_stack_is_built_once(
    base: PreparedModel, stack: PreparedModel, loras: list[LoraFiles]
) -> None:
    assert stack.modules == 7 + 2
    assert stack.facts == read_facts(base.folder.parents[1] / "random.gguf")
    adapters = [adapter_in(lora) for lora in loras]
    built = (stack.folder / "manifest.json").stat().st_mtime_ns
    assert prepare_stack(base, adapters, progress=False) == stack
    assert (stack.folder / "manifest.json").stat().st_mtime_ns == built
    assert prepare_stack(base, adapters[::-1], progress=False).folder != stack.folder  # slots are numbered


def test_an_adapter_of_a_larger_model_is_refused(base: PreparedModel, loras: list[LoraFiles], tmp_path: Path) -> None:
    write_llama(tmp_path / "larger.gguf", blocks=2)
    larger = write_lora(tmp_path / "larger", tmp_path / "larger.gguf")
    with pytest.raises(
        WeightsError, match=r"An adapter changes blk\.1\..*\.weight of shape .*; the base model has None"
    ):
        prepare_stack(base, [adapter_in(loras[0]), adapter_in(larger)], progress=False)
    assert not list(base.folder.parent.glob(".*"))


def of_four_bits(base: PreparedModel, lora: LoraFiles) -> PreparedModel:
    home = base.folder.parents[1]
    weights, adapter = home / "random.gguf", replace(adapter_in(lora), quantization="q4_0")
    return prepare_model("random", weights, sha256_of(weights), home, adapter=adapter, progress=False)


def test_a_graph_that_is_not_as_expected_is_refused(
    base: PreparedModel, loras: list[LoraFiles], tmp_path: Path
) -> None:
    lora = [read_lora(loras[0].folder)]
    with pytest.raises(
        WeightsError, match=r"The weights of blk\.0\.attn_q\.weight are not held in groups of eight bits"
    ):
        stack_adapters(of_four_bits(base, loras[0]).folder / GRAPH, tmp_path / "stacked.xml", lora, progress=False)
    assert not (tmp_path / "stacked.xml").exists()
