"""Several LoRA adapters around one copy of a base's weights, each row of a batch computed with its own.

Merged models cost a copy of the weights each and never share a batch. Punica (Chen et al. 2023) and S-LoRA (Sheng et
al. 2023) keep the adapters apart and choose one for each row; the library's pipeline, however, hands its graph nothing
but token ids. So the ids say it: in slot s token t is ``s * vocabulary + t``, in prompts as in what is generated, and
slot 0 has no adapter. The pipeline needs no change, and its prefix cache never takes one slot's prompt for another's.

Linear layers with the same input x become one product: ``y = [x, m * (x A')] [W | B]'``, with the slots' A below each
other, m 1 in the columns of the row's slot and 0 elsewhere, and B quantised in groups as W is. The logits are as wide
as all slots together; those of other slots are so low that they are never chosen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from expert_router.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from expert_router.engines.adapter import LoraWeights

BLOCK = (("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))
"""A block's linear layers as the library's GGUF reader makes them, one after the other; a group shares its input."""
PER_BLOCK = sum(map(len, BLOCK))
NEVER = -1e9
ZERO_POINT = 128
"""Eight bits without a sign: what stands for 0."""


@dataclass(frozen=True, slots=True)
class Stacked:
    """``vocabulary``: by so much the ids of one slot are apart from the next one's; ``modules`` of all adapters."""

    vocabulary: int
    modules: int


@dataclass(frozen=True, slots=True)
class _Linear:
    """A linear layer of the graph with its weights: eight bits in groups, shape (O, groups, group)."""

    name: str
    node: Any
    values_OGK: NDArray[np.uint8]
    zero_points_OG1: NDArray[np.uint8]
    scales_OG1: NDArray[np.float16]

    @property
    def shape(self) -> tuple[int, int]:
        outputs, groups, size = self.values_OGK.shape
        return outputs, groups * size


def stack_adapters(source: Path, target: Path, adapters: Sequence[LoraWeights], *, progress: bool) -> Stacked:
    """Read the graph ``source`` (an .xml with its .bin), give it a slot for each adapter, write it to ``target``.

    Raises ``WeightsError`` when an adapter does not fit, or the graph is not one that the GGUF reader made of a decoder
    in eight bits.
    """
    import openvino as ov

    model = ov.Core().read_model(source)
    result = model.output("logits").get_node()
    head = result.input_value(0).get_node()
    vocabulary = int(head.get_output_partial_shape(0)[2].get_length())
    blocks = list(_blocks(model, head))
    _check_fit(adapters, {layer.name: layer.shape for groups in blocks for group in groups for layer in group})
    choice = _Choice(model.input("input_ids"), vocabulary, adapters)
    for groups in tqdm(blocks, desc="stack adapters", unit="block", disable=None if progress else True):
        for group in groups:
            _widen(group, adapters, choice)
    model.add_parameters([_spread_logits(result, head, choice)])
    model.validate_nodes_and_infer_types()
    ov.save_model(model, target, compress_to_fp16=False)
    return Stacked(vocabulary, sum(len(adapter.modules) for adapter in adapters))


class _Choice:
    """Which slot each row is of, as the graph sees it."""

    def __init__(self, ids: Any, vocabulary: int, adapters: Sequence[LoraWeights]) -> None:
        from openvino import opset13 as ops

        self.slots = len(adapters) + 1
        self._columns = np.repeat(np.arange(1, self.slots), [adapter.rank for adapter in adapters])
        self._masks: dict[int, Any] = {}
        plain, slot = ops.mod(ids, whole(vocabulary)), ops.divide(ids, whole(vocabulary))
        for reader in ids.get_target_inputs():
            if reader.get_node().get_type_name() not in {"ShapeOf", "Mod", "FloorMod", "Divide"}:
                reader.replace_source_output(plain.output(0))
        numbers = whole(np.arange(self.slots).reshape(1, 1, -1))
        self.one_hot = ops.convert(ops.equal(ops.unsqueeze(slot, whole([2])), numbers), "f32")
        """Shape (rows, positions, slots)."""

    def mask(self, layers: int, padding: int) -> Any:
        """1 in the columns of the row's own adapter, for so many layers with the same input; 0 elsewhere."""
        from openvino import opset13 as ops

        if layers not in self._masks:
            columns = np.concatenate([np.tile(self._columns, layers), np.zeros(padding, dtype=int)])
            self._masks[layers] = ops.gather(self.one_hot, whole(columns), whole(2))
        return self._masks[layers]


def whole(values: Any) -> Any:
    from openvino import opset13 as ops

    return ops.constant(np.asarray(values, dtype=np.int64))


def _blocks(model: Any, head: Any) -> Iterator[list[list[_Linear]]]:
    """The decoder's blocks, each as the groups of ``BLOCK``. The nodes' names number them in the order of making."""
    products = [
        node
        for node in model.get_ops()
        if node.get_type_name() == "MatMul"
        and node.get_attributes()["transpose_b"]
        and node.get_name() != head.get_name()
    ]
    products.sort(key=lambda node: int(re.findall(r"\d+", node.get_friendly_name())[-1]))
    if not products or len(products) % PER_BLOCK:
        raise WeightsError(
            f"The graph has {len(products)} linear layers: it is no decoder whose adapters can be stacked."
        )
    left = iter(products)
    for number in range(len(products) // PER_BLOCK):
        groups = [[_linear(f"blk.{number}.{name}.weight", next(left)) for name in group] for group in BLOCK]
        for group in groups:
            if len({layer.node.input_value(0).get_node().get_name() for layer in group}) > 1:
                raise WeightsError(
                    f"Block {number} of the graph is not as a decoder's: its adapters cannot be stacked."
                )
        yield groups


def _linear(name: str, node: Any) -> _Linear:
    """Weights as the reader leaves them: Convert(Reshape(Multiply(Subtract(values, zero points), scales)))."""
    try:
        product = node.input_value(1).get_node().input_value(0).get_node().input_value(0).get_node()
        difference = product.input_value(0).get_node()
        values, zero_points = (difference.input_value(i).get_node().input_value(0).get_node().data for i in (0, 1))
        layer = _Linear(name, node, values, zero_points, product.input_value(1).get_node().data)
        whole_groups = values.ndim == layer.scales_OG1.ndim == 3 and values.dtype == np.uint8  # noqa: PLR2004
    except (RuntimeError, AttributeError, IndexError):
        whole_groups = False
    if not whole_groups:
        raise WeightsError(
            f"The weights of {name} are not held in groups of eight bits: its adapters cannot be stacked."
        )
    return layer


def _check_fit(adapters: Sequence[LoraWeights], shapes: Mapping[str, tuple[int, int]]) -> None:
    for adapter in adapters:
        for name, module in adapter.modules.items():
            shape = (module.b_OR.shape[0], module.a_RI.shape[1])
            if shapes.get(name) != shape:
                raise WeightsError(
                    f"An adapter changes {name} of shape {shape}; the base model has {shapes.get(name)}."
                )


def _widen(group: Sequence[_Linear], adapters: Sequence[LoraWeights], choice: _Choice) -> None:
    """Put one product in place of the group's, which computes all slots' changes with it."""
    from openvino import opset13 as ops

    x = group[0].node.input_value(0)
    inputs, size = group[0].shape[1], group[0].values_OGK.shape[2]
    a_TI = np.concatenate([_half_a(adapter, layer) for layer in group for adapter in adapters])
    padding = -len(a_TI) % size
    a_TI = np.concatenate([a_TI, np.zeros((padding, inputs), np.float32)])
    thin = ops.multiply(ops.matmul(x, ops.constant(a_TI), False, True), choice.mask(len(group), padding))
    weights = _quantised([_with_b(group, number, adapters, len(a_TI)) for number in range(len(group))])
    product = ops.matmul(ops.concat([x, thin.output(0)], 2), weights, False, True)
    outputs = [layer.shape[0] for layer in group]
    parts = ops.variadic_split(product, whole(2), whole(outputs)).outputs() if len(group) > 1 else product.outputs()
    for layer, part in zip(group, parts, strict=True):
        for reader in layer.node.output(0).get_target_inputs():
            reader.replace_source_output(part)


def _half_a(adapter: LoraWeights, layer: _Linear) -> NDArray[np.float32]:
    """Shape (rank, I): zeros where the adapter leaves the layer as it is."""
    module = adapter.modules.get(layer.name)
    return np.zeros((adapter.rank, layer.shape[1]), np.float32) if module is None else module.a_RI


def _with_b(group: Sequence[_Linear], number: int, adapters: Sequence[LoraWeights], columns: int) -> _Linear:
    """The layer with its adapters' B beside its weights, in groups of the same size, and 0 for other layers' A."""
    layer = group[number]
    b_OT = np.zeros((layer.shape[0], columns), np.float32)
    start = number * sum(adapter.rank for adapter in adapters)
    for adapter in adapters:
        end = start + adapter.rank
        if (module := adapter.modules.get(layer.name)) is not None:
            b_OT[:, start:end] = adapter.scale * module.b_OR
        start = end
    grouped = b_OT.reshape(layer.shape[0], -1, layer.values_OGK.shape[2])
    scales = np.abs(grouped).max(axis=2, keepdims=True) / 127
    values = np.rint(np.divide(grouped, scales, out=np.zeros_like(grouped), where=scales > 0)) + ZERO_POINT
    zero_points = np.broadcast_to(layer.zero_points_OG1, layer.scales_OG1.shape)
    return _Linear(
        layer.name,
        layer.node,
        np.concatenate([layer.values_OGK, values.astype(np.uint8)], axis=1),
        np.concatenate([zero_points, np.full(scales.shape, ZERO_POINT, np.uint8)], axis=1),
        np.concatenate([layer.scales_OG1, scales.astype(np.float16)], axis=1),
    )


def _quantised(layers: Sequence[_Linear]) -> Any:
    """The layers' weights below each other, as a node of shape (O of all, I), held as the reader holds them."""
    from openvino import opset13 as ops

    values = np.concatenate([layer.values_OGK for layer in layers])
    zero_points = np.concatenate([layer.zero_points_OG1 for layer in layers])
    scales = np.concatenate([layer.scales_OG1 for layer in layers])
    difference = ops.subtract(ops.convert(ops.constant(values), "f16"), ops.convert(ops.constant(zero_points), "f16"))
    grouped = ops.multiply(difference, ops.constant(scales))
    return ops.convert(ops.reshape(grouped, whole([len(values), -1]), False), "f32")


def _spread_logits(result: Any, head: Any, choice: _Choice) -> Any:
    """Put each row's logits at its slot's ids. Returns the parameter by which the library says which rows it samples.

    The library adds that parameter itself, but only where the graph ends with the product that makes the logits.
    """
    from openvino import opset13 as ops

    sampled = ops.parameter([-1], np.int64, name="sampled_tokens_indices")
    sampled.output(0).get_tensor().set_names({"sampled_tokens_indices"})
    head.input(0).replace_source_output(ops.gather(head.input_value(0), sampled, whole(0)).output(0))
    other = ops.subtract(ops.constant(np.float32(1)), ops.gather(choice.one_hot, sampled, whole(0)))
    penalty = ops.unsqueeze(ops.multiply(other, ops.constant(np.float32(NEVER))), whole([3]))
    spread = ops.add(ops.unsqueeze(head.output(0), whole([2])), penalty)
    result.input(0).replace_source_output(ops.reshape(spread, whole([0, 0, -1]), True).output(0))
    return sampled
