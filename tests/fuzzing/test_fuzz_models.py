"""Readers of model files, offered damaged ones: ``WeightsError`` for what cannot be used, in little time and memory."""

from __future__ import annotations

import json
import resource
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
from damage import damaged, fuzzed, only_raises
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import LoraFiles, write_llama, write_lora

from expert_router.artifacts import sha256_of
from expert_router.engines.adapter import read_lora
from expert_router.engines.gguf import read_facts, requantise
from expert_router.engines.llama_files import base_file, write_lora_file
from expert_router.errors import WeightsError
from expert_router.weights.gguf_file import count_layers, leave_out_layers, open_gguf

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 1024**3
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    write_llama(path, blocks=2)
    return path


@pytest.fixture
def lora(base: Path, tmp_path: Path) -> LoraFiles:
    return write_lora(tmp_path / "adapter", base, modules=("attn_q", "attn_v"))


@contextmanager
def little_memory() -> Iterator[None]:
    """Half a gigabyte more than there is now, so that who believes a file's sizes fails at once."""
    now = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + GIB // 2, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# GGUF


def read_all(path: Path) -> None:
    """All that the package does with a model file."""
    for read in (read_facts, count_layers, _requantised, _shortened, _for_llama_cpp):
        only_raises(read, path, path.read_bytes(), WeightsError)


def _requantised(path: Path) -> object:
    return requantise(path, path.with_name("target.gguf"), progress=False)


def _shortened(path: Path) -> object:
    return leave_out_layers(path, path.with_name("target.gguf"), [0])


def _for_llama_cpp(path: Path) -> object:
    digest = str(abs(hash(path.read_bytes()))).zfill(20)
    return base_file("fuzzed", path, digest, path.parent / "cache", progress=False)


@given(data=st.data())
@fuzzed
def test_a_damaged_model_is_read_or_refused(base: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = base.read_bytes()
    head = whole[: whole.index(b"token_embd") + 400]  # behind it there are only numbers
    changed = data.draw(damaged(head))
    path = tmp_path / "model.gguf"
    path.write_bytes(
        changed + data.draw(st.sampled_from([whole[len(head) :], b"", whole[len(head) : len(head) + 900]]))
    )
    with little_memory():
        read_all(path)


def at(whole: bytes, key: bytes) -> int:
    """Where the type of a metadata key's value stands."""
    return whole.index(key) + len(key)


COUNTS = [2**64 - 1, 2**63, 2**40, 2**31, 1_000_000]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("place", [8, 16], ids=["tensors", "keys"])
def test_a_count_that_is_not_true_is_refused(base: Path, tmp_path: Path, place: int, count: int) -> None:
    content = bytearray(base.read_bytes())
    struct.pack_into("<Q", content, place, count)
    refused(tmp_path, bytes(content))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", [0, 8, 9], ids=["bytes", "texts", "lists"])
def test_a_list_that_is_not_so_long_is_refused(base: Path, tmp_path: Path, kind: int, count: int) -> None:
    whole = base.read_bytes()
    content = bytearray(whole)
    struct.pack_into("<IQ", content, at(whole, b"tokenizer.ggml.tokens") + 4, kind, count)
    refused(tmp_path, bytes(content))


def test_lists_in_lists_are_refused(base: Path, tmp_path: Path) -> None:
    whole = base.read_bytes()
    start = at(whole, b"tokenizer.ggml.tokens")
    refused(tmp_path, whole[: start + 4] + struct.pack("<IQ", 9, 1) * 100_000)


@pytest.mark.parametrize("size", COUNTS)
def test_a_dimension_that_is_not_true_is_refused(base: Path, tmp_path: Path, size: int) -> None:
    whole = base.read_bytes()
    content = bytearray(whole)
    struct.pack_into("<Q", content, at(whole, b"token_embd.weight") + 4, size)
    refused(tmp_path, bytes(content))


def test_a_text_that_is_not_so_long_is_refused(base: Path, tmp_path: Path) -> None:
    whole = base.read_bytes()
    content = bytearray(whole)
    struct.pack_into("<Q", content, whole.index(b"general.architecture") - 8, 2**60)
    refused(tmp_path, bytes(content))


@pytest.mark.parametrize("value", [[1, 2], "many", 1e300, float("nan"), -4, 0])
def test_a_number_that_is_none_is_refused(tmp_path: Path, value: object) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key in ("context_length", "block_count", "attention.head_count", "attention.head_count_kv"):
        _add(writer, f"llama.{key}", value)
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((64, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match=r"model\.gguf"):
        read_facts(path)
    read_all(path)


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    match value:
        case list():
            writer.add_array(key, value)
        case str():
            writer.add_string(key, value)
        case float():
            writer.add_float64(key, value)
        case int():
            writer.add_int32(key, value)


def refused(folder: Path, content: bytes) -> None:
    path = folder / "model.gguf"
    path.write_bytes(content)
    with little_memory():
        with pytest.raises(WeightsError, match=r"model\.gguf"):
            open_gguf(path)
        read_all(path)


# Adapters


@given(data=st.data(), which=st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]))
@fuzzed
def test_a_damaged_adapter_is_read_or_refused(lora: LoraFiles, base: Path, data: st.DataObject, which: str) -> None:
    whole = {path: path.read_bytes() for path in lora.folder.iterdir()}
    content = whole[lora.folder / which]
    damage = damaged(content[:900])  # of the weights: the header, behind which there are only numbers
    built = base_file("base", base, sha256_of(base), lora.folder.parent / "cache", progress=False)
    (lora.folder / which).write_bytes(data.draw(damage) + content[900:])
    try:
        with little_memory():
            only_raises(
                lambda _: read_lora(lora.folder), lora.folder / which, (lora.folder / which).read_bytes(), WeightsError
            )
            only_raises(
                lambda _: write_lora_file(lora.folder, built, lora.folder.parent / "lora.gguf"),
                lora.folder / which,
                (lora.folder / which).read_bytes(),
                WeightsError,
            )
    finally:
        for path, before in whole.items():
            path.write_bytes(before)


def test_a_header_of_100_gigabytes_is_refused(lora: LoraFiles) -> None:
    path = lora.folder / "adapter_model.safetensors"
    path.write_bytes(struct.pack("<Q", 100 * GIB) + path.read_bytes()[8:])
    with little_memory(), pytest.raises(WeightsError, match="not a LoRA adapter"):
        read_lora(lora.folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused(lora: LoraFiles, number: float) -> None:
    values = lora.tensors()[Q].copy()
    values[0, 0] = number
    lora.rewrite({Q: values})
    with pytest.raises(WeightsError, match=r"blk\.0\.attn_q\.weight.*no finite number"):
        read_lora(lora.folder)


def test_numbers_too_large_for_the_file_that_is_made_of_them_are_refused(lora: LoraFiles, base: Path) -> None:
    values = lora.tensors()[Q].copy()
    values[0, 0] = 1e6  # of float32, beyond what float16 holds
    lora.rewrite({Q: values})
    built = base_file("base", base, sha256_of(base), lora.folder.parent / "cache", progress=False)
    with pytest.raises(WeightsError, match=r"blk\.0\.attn_q\.weight"):
        write_lora_file(lora.folder, built, lora.folder.parent / "lora.gguf")


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), "many", None, [], 1e308])
def test_a_scale_that_is_no_number_is_refused(lora: LoraFiles, alpha: object) -> None:
    lora.configure(lora_alpha=alpha, r=2)
    with pytest.raises(WeightsError):
        read_lora(lora.folder).delta("blk.0.attn_q.weight")


@pytest.mark.parametrize("rank", [0, -2, 10**30, 2.5, float("nan"), "2x", None])
def test_a_rank_that_is_none_is_refused(lora: LoraFiles, rank: object) -> None:
    lora.configure(r=rank)
    with pytest.raises(WeightsError):
        read_lora(lora.folder)


@pytest.mark.parametrize("dtype", ["I8", "I64", "BOOL", "F64", "BF16", "F8_E4M3", "U16", "C64", "X"])
def test_other_kinds_of_numbers_are_refused_or_read(lora: LoraFiles, dtype: str) -> None:
    """bfloat16, in which many adapters are published, is said by name."""
    path = lora.folder / "adapter_model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length].replace(b'"F32"', f'"{dtype}"'.encode())
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    with pytest.raises(WeightsError, match="adapter"):
        read_lora(lora.folder)


def test_a_name_that_is_there_twice_is_refused(lora: LoraFiles) -> None:
    path = lora.folder / "adapter_model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    other = Q.replace("q_proj", "v_proj")
    text = json.dumps(header).replace(json.dumps(other), json.dumps(Q)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(WeightsError):
        read_lora(lora.folder)
