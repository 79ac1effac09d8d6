"""Adapters merged into GGUF files: what the merged numbers are, and what is refused instead of merged in part."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
from tiny_gguf import HEADS, MODULES, WIDTH, LoraFiles, Quantisation, write_llama, write_lora

from expert_router.engines.adapter import permuted, read_lora
from expert_router.engines.gguf import requantise
from expert_router.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

KEY_HEADS = 1
HEAD_WIDTH = WIDTH // HEADS
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.gguf"
    write_llama(path)
    return path


@pytest.fixture
def lora(base: Path, tmp_path: Path) -> LoraFiles:
    return write_lora(tmp_path / "adapter", base)


def merge(base: Path, lora: LoraFiles) -> dict[str, np.ndarray]:
    """The merged file's values by tensor."""
    target = base.with_name("merged.gguf")
    assert requantise(base, target, lora=read_lora(lora.folder), progress=False) == len(lora.pairs)
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(target).tensors}


def refused(base: Path, lora: LoraFiles, says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        requantise(base, base.with_name("merged.gguf"), lora=read_lora(lora.folder), progress=False)
    assert not base.with_name("merged.gguf").exists()


def assert_same_up_to_q8_0(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    blocks, found_blocks = expected.reshape(-1, 32), found.reshape(-1, 32)
    step = np.abs(blocks).max(axis=1, keepdims=True) / 127
    assert (np.abs(blocks - found_blocks) <= 0.6 * step + 1e-7).all()  # half a step, and the scale is float16


def in_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Each head's rows from transformers' order to llama.cpp's, one by one: row i meets row i + half the head."""
    head_width = len(rows) // heads
    half = head_width // 2
    order = [head * head_width + i + offset for head in range(heads) for i in range(half) for offset in (0, half)]
    return rows[order]


# What is merged


@pytest.mark.parametrize("kind", [Quantisation.Q4_0, Quantisation.Q8_0, Quantisation.F32], ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_merged_matrix_is_w_plus_alpha_over_r_times_b_a(
    tmp_path: Path, kind: Quantisation, dtype: type[np.floating]
) -> None:
    values = write_llama(tmp_path / "base.gguf", kind, blocks=2)
    lora = write_lora(tmp_path / "adapter", tmp_path / "base.gguf", rank=4, alpha=10, dtype=dtype)
    assert len(lora.pairs) == 2 * len(MODULES)
    merged = merge(tmp_path / "base.gguf", lora)
    heads = {"attn_q": HEADS, "attn_k": KEY_HEADS}
    for name in lora.pairs:
        module = name.split(".")[2]
        delta = lora.delta(name)
        assert np.abs(delta).max() > 0.05  # or the test would not see it
        moved = in_pairs(delta, heads[module]) if module in heads else delta
        assert_same_up_to_q8_0(merged[name], values[name] + moved)


def test_what_the_adapter_does_not_name_stays_as_without_it(base: Path, tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "adapter", base, modules=("attn_v", "ffn_down"))
    with_adapter = merge(base, lora)
    requantise(base, tmp_path / "plain.gguf", progress=False)
    without = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(tmp_path / "plain.gguf").tensors
    }
    assert list(with_adapter) == list(without)
    changed = {name for name in without if not np.array_equal(with_adapter[name], without[name])}
    assert changed == {"blk.0.attn_v.weight", "blk.0.ffn_down.weight"} == set(lora.pairs)


@pytest.mark.parametrize("modules", [tuple(MODULES), ("attn_q",), ("ffn_up", "ffn_gate", "ffn_down")])
def test_every_module_is_counted(tmp_path: Path, modules: tuple[str, ...]) -> None:
    write_llama(tmp_path / "base.gguf", blocks=3)
    lora = write_lora(tmp_path / "adapter", tmp_path / "base.gguf", modules=modules)
    loaded = read_lora(lora.folder)
    assert set(loaded.modules) == set(lora.pairs)
    assert requantise(tmp_path / "base.gguf", tmp_path / "m.gguf", lora=loaded, progress=False) == 3 * len(modules)


def test_without_an_adapter_nothing_is_counted(base: Path) -> None:
    assert requantise(base, base.with_name("plain.gguf"), progress=False) == 0


def test_the_base_and_the_adapter_are_only_read(base: Path, lora: LoraFiles) -> None:
    files = [base, *lora.folder.iterdir()]
    before = [path.read_bytes() for path in files]
    merge(base, lora)
    assert [path.read_bytes() for path in files] == before


# The order of q's and k's rows


def rotated_by_halves(vector: Floats, position: int) -> Floats:
    """Rotary embedding as transformers does it: x cos + rotate_half(x) sin, entry i together with i + half."""
    half = len(vector) // 2
    angles = position * 10_000.0 ** (-np.arange(half) / half)
    cos, sin = (np.concatenate([f(angles), f(angles)]) for f in (np.cos, np.sin))
    turned: Floats = vector * cos + np.concatenate([-vector[half:], vector[:half]]) * sin
    return turned


def rotated_by_pairs(vector: Floats, position: int) -> Floats:
    """The same as llama.cpp does it: entries 2i and 2i + 1 are a complex number, which is turned."""
    half = len(vector) // 2
    turn = np.exp(1j * position * 10_000.0 ** (-np.arange(half) / half))
    turned: Floats = ((vector[0::2] + 1j * vector[1::2]) * turn).view(np.float64)
    return turned


@pytest.mark.parametrize(("query_heads", "key_heads"), [(2, 1), (4, 2), (3, 3)])
def test_permuted_rows_attend_under_llamas_rotation_as_the_others_do_under_transformers(
    query_heads: int, key_heads: int
) -> None:
    random = np.random.default_rng(0)
    width = 16
    w_q, w_k = (random.normal(size=(heads * width, 24)).astype(np.float32) for heads in (query_heads, key_heads))
    x, y = random.normal(size=(2, 24))
    for query in range(query_heads):
        key = query * key_heads // query_heads
        q, k = (w_q @ x).reshape(query_heads, width)[query], (w_k @ y).reshape(key_heads, width)[key]
        p_q = (permuted(w_q, query_heads) @ x).reshape(query_heads, width)[query]
        p_k = (permuted(w_k, key_heads) @ y).reshape(key_heads, width)[key]
        for m, n in ((0, 0), (1, 0), (7, 3), (100, 250)):
            expected = rotated_by_halves(q, m) @ rotated_by_halves(k, n)
            np.testing.assert_allclose(rotated_by_pairs(p_q, m) @ rotated_by_pairs(p_k, n), expected, rtol=1e-5)
        assert rotated_by_pairs(q, 7) @ rotated_by_pairs(k, 3) != pytest.approx(  # the order matters
            rotated_by_halves(q, 7) @ rotated_by_halves(k, 3), rel=1e-3
        )


def test_permuting_moves_each_row_once_as_one_by_one() -> None:
    rows = np.arange(2 * 8 * 3, dtype=np.float32).reshape(16, 3)
    for heads in (1, 2, 4):
        np.testing.assert_array_equal(permuted(rows, heads), in_pairs(rows, heads))


def test_another_architecture_keeps_the_order_of_transformers(tmp_path: Path) -> None:
    values = write_llama(tmp_path / "base.gguf", architecture="qwen2")
    lora = write_lora(tmp_path / "adapter", tmp_path / "base.gguf")
    merged = merge(tmp_path / "base.gguf", lora)
    for name in lora.pairs:
        assert_same_up_to_q8_0(merged[name], values[name] + lora.delta(name))


# What is refused


def test_a_module_that_the_base_lacks_is_named(tmp_path: Path) -> None:
    write_llama(tmp_path / "base.gguf")
    write_llama(tmp_path / "larger.gguf", blocks=2)
    lora = write_lora(tmp_path / "adapter", tmp_path / "larger.gguf", modules=("attn_v",))
    refused(tmp_path / "base.gguf", lora, r"1 of the adapter's 2 modules are not in the base model .*blk\.1\.attn_v")


@pytest.mark.parametrize("half", ["A", "B"])
def test_a_missing_half_is_said(base: Path, lora: LoraFiles, half: str) -> None:
    lora.rewrite({f"{Q}.lora_{half}.weight": None})
    refused(base, lora, "is incomplete: a module lacks one of its two halves")


def test_an_adapter_without_any_module_is_refused(base: Path, lora: LoraFiles) -> None:
    lora.rewrite(dict.fromkeys(lora.tensors()))
    refused(base, lora, "is incomplete")


@pytest.mark.parametrize(("half", "shape"), [("A", (2, WIDTH - 1)), ("A", (2, 2 * WIDTH)), ("B", (WIDTH // 2, 2))])
def test_a_shape_that_does_not_fit_the_base_is_said(
    base: Path, lora: LoraFiles, half: str, shape: tuple[int, int]
) -> None:
    lora.rewrite({f"{Q}.lora_{half}.weight": np.ones(shape, np.float32)})
    refused(base, lora, rf"adapter's blk\.0\.attn_q\.weight has shape \(.*\), the base model's \({WIDTH}, {WIDTH}\)")


@pytest.mark.parametrize(
    ("half", "shape"), [("A", (3, WIDTH)), ("B", (WIDTH, 1)), ("B", (WIDTH,)), ("A", (2, WIDTH, 1)), ("A", (WIDTH, 2))]
)  # fmt: skip
def test_halves_that_do_not_have_the_rank_are_said(
    base: Path, lora: LoraFiles, half: str, shape: tuple[int, ...]
) -> None:
    lora.rewrite({f"{Q}.lora_{half}.weight": np.ones(shape, np.float32)})
    refused(base, lora, r"says rank 2, but its blk\.0\.attn_q\.weight has halves of shape")


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_a_rank_that_is_not_that_of_the_weights_is_refused_as_the_scale_would_be_wrong(
    base: Path, lora: LoraFiles, rank: int
) -> None:
    lora.configure(r=rank)
    refused(base, lora, rf"says rank {rank}, but its blk\.0\.\w+\.weight has halves of shape \(2, ")


@pytest.mark.parametrize("changes", [{"r": None}, {"r": 0}, {"r": "two"}, {"r": [2]}, {"lora_alpha": None}])
def test_a_configuration_without_a_usable_scale_is_refused(
    base: Path, lora: LoraFiles, changes: dict[str, object]
) -> None:
    lora.configure(**changes)
    refused(base, lora, "adapter is not a LoRA adapter as PEFT saves it")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe"])
def test_a_configuration_that_is_none_is_refused(base: Path, lora: LoraFiles, content: bytes) -> None:
    (lora.folder / "adapter_config.json").write_bytes(content)
    refused(base, lora, "adapter is not a LoRA adapter as PEFT saves it")


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 200, 2000, -4, -1])
def test_a_truncated_file_is_refused_wherever_it_ends(base: Path, lora: LoraFiles, kept: int) -> None:
    path = lora.folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(base, lora, "adapter is not a LoRA adapter as PEFT saves it")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_refused_by_name(base: Path, lora: LoraFiles, name: str) -> None:
    (lora.folder / name).unlink()
    refused(base, lora, "adapter is not a LoRA adapter as PEFT saves it: FileNotFoundError")


@pytest.mark.parametrize(
    ("key", "value"),
    [("use_dora", True), ("use_rslora", True), ("lora_bias", True), ("fan_in_fan_out", True),
     ("modules_to_save", ["lm_head"]), ("rank_pattern", {"q_proj": 4}), ("alpha_pattern", {"q_proj": 32}),
     ("layer_replication", [[0, 1], [0, 1]]), ("alora_invocation_tokens", [1, 2])],
)  # fmt: skip
def test_what_is_more_than_plain_lora_is_refused_by_its_flag(
    base: Path, lora: LoraFiles, key: str, value: object
) -> None:
    lora.configure(**{key: value})
    refused(base, lora, f"uses {key}, which cannot be merged")


@pytest.mark.parametrize(
    "name",
    [
        f"{Q}.lora_magnitude_vector",  # DoRA's, whatever the flag says
        f"{Q}.lora_E",  # AdaLoRA's
        f"{Q}.lora_B.bias",
        f"{Q}.weight",
        f"{Q}.lora_A.default.weight",
        "base_model.model.model.layers.0.mlp.experts.0.up_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight",
        "lm_head.weight",
    ],
)
def test_a_tensor_that_is_no_half_of_a_linear_layer_is_refused_by_name(base: Path, lora: LoraFiles, name: str) -> None:
    lora.rewrite({name: np.ones((2, WIDTH), np.float32)})
    refused(base, lora, f"changes {name}, which is no linear layer of a decoder")


def test_numbers_that_numpy_does_not_have_are_refused(base: Path, lora: LoraFiles) -> None:
    header = {f"{Q}.lora_A.weight": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}
    head = json.dumps(header).encode()
    (lora.folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(8))
    refused(base, lora, "is not a LoRA adapter as PEFT saves it: .*bfloat16")


@pytest.mark.parametrize(
    "spoil",
    [lambda lora: lora.rewrite({f"{Q}.lora_B.weight": np.ones((4, 2), np.float32)}),
     lambda lora: lora.rewrite({f"{Q.replace('.0.', '.9.')}.lora_{half}.weight": np.ones(shape, np.float32)
                                for half, shape in (("A", (2, WIDTH)), ("B", (WIDTH, 2)))})],
    ids=["a wrong shape", "a module too many"],
)  # fmt: skip
def test_a_refused_adapter_writes_nothing_over(base: Path, lora: LoraFiles, spoil: Callable[[LoraFiles], None]) -> None:
    merged = base.with_name("merged.gguf")
    merged.write_bytes(b"what was there")
    spoil(lora)
    with pytest.raises(WeightsError, match="adapter's"):
        requantise(base, merged, lora=read_lora(lora.folder), progress=False)
    assert merged.read_bytes() == b"what was there"
    assert sorted(path.name for path in base.parent.iterdir()) == ["adapter", "base.gguf", "merged.gguf"]
