from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from tiny_gguf import FEED_FORWARD, WIDTH, Quantisation, byte_tokens, write_llama

from expert_router.engines.gguf import ModelFacts, read_facts, requantise
from expert_router.errors import WeightsError

if TYPE_CHECKING:
    from pathlib import Path

KINDS = [Quantisation.Q4_0, Quantisation.Q4_1, Quantisation.Q8_0, Quantisation.F16, Quantisation.F32]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.gguf"
    write_llama(path)
    return path


def requantised(source: Path) -> gguf.GGUFReader:
    target = source.with_name("target.gguf")
    requantise(source, target, progress=False)
    return gguf.GGUFReader(target)


def metadata(reader: gguf.GGUFReader) -> dict[str, tuple[Any, Any]]:
    """Each key's type and value; without the counts in the header, which are the file's and not the model's."""
    return {
        name: (list(field.types), field.contents())
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_matrix_becomes_q8_0_with_the_same_values(tmp_path: Path, kind: Quantisation) -> None:
    values = write_llama(tmp_path / "source.gguf", kind)
    tensors = {tensor.name: tensor for tensor in requantised(tmp_path / "source.gguf").tensors}
    assert list(tensors) == list(values)
    for name, expected in values.items():
        tensor = tensors[name]
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert found.shape == expected.shape
        if expected.ndim == 1:
            assert tensor.tensor_type == Quantisation.F32
            np.testing.assert_array_equal(found, expected)
        else:
            assert tensor.tensor_type == Quantisation.Q8_0
            blocks, found_blocks = expected.reshape(-1, 32), found.reshape(-1, 32)
            step = np.abs(blocks).max(axis=1, keepdims=True) / 127
            assert (np.abs(blocks - found_blocks) <= 0.6 * step + 1e-7).all()  # half a step, and the scale is float16


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_as_q4_0_the_layers_have_four_bits_and_the_embeddings_eight(tmp_path: Path, kind: Quantisation) -> None:
    values = write_llama(tmp_path / "source.gguf", kind)
    requantise(tmp_path / "source.gguf", tmp_path / "target.gguf", quantization="q4_0", progress=False)
    reader = gguf.GGUFReader(tmp_path / "target.gguf")
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_0
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert tensors["token_embd.weight"].tensor_type == Quantisation.Q8_0
    for name, expected in values.items():
        if name.startswith("blk.") and expected.ndim > 1:
            assert tensors[name].tensor_type == Quantisation.Q4_0
            found = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
            blocks, found_blocks = expected.reshape(-1, 32), found.reshape(-1, 32)
            step = np.abs(blocks).max(axis=1, keepdims=True) / 8
            error = np.abs(blocks - found_blocks)
            assert (error <= 1.01 * step + 1e-7).all()  # the far end of a block is cut by one step
            assert error.mean() < 0.3 * step.mean()


def test_requantising_q8_0_changes_nothing(source: Path) -> None:
    once = requantised(source)
    again = source.with_name("again.gguf")
    requantise(source.with_name("target.gguf"), again, progress=False)
    for first, second in zip(once.tensors, gguf.GGUFReader(again).tensors, strict=True):
        np.testing.assert_allclose(
            gguf.quants.dequantize(first.data, first.tensor_type),
            gguf.quants.dequantize(second.data, second.tensor_type),
            rtol=2e-3,
        )


def test_all_metadata_is_kept_with_its_types(source: Path) -> None:
    before, after = metadata(gguf.GGUFReader(source)), metadata(requantised(source))
    changed = {"general.file_type", "general.quantization_version"}
    assert {name: after[name] for name in before if name not in changed} == {
        name: value for name, value in before.items() if name not in changed
    }
    assert set(after) == set(before) | changed
    assert after["general.file_type"][1] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert after["tokenizer.ggml.tokens"][1][:256] == byte_tokens()
    assert after["tokenizer.ggml.add_bos_token"][1] is False
    assert "<|im_start|>assistant" in after["tokenizer.chat_template"][1]


def test_the_facts_are_read_from_the_file(tmp_path: Path) -> None:
    write_llama(tmp_path / "source.gguf", context_tokens=1234)
    assert read_facts(tmp_path / "source.gguf") == ModelFacts("llama", 1234)
    requantised(tmp_path / "source.gguf")
    assert read_facts(tmp_path / "target.gguf") == ModelFacts("llama", 1234)


@pytest.mark.parametrize("kept", [1, 4, 8, 23, 24, 25, 100, 999, 3000, 8000, 20_000, -1000, -1])
def test_a_truncated_file_is_refused_wherever_it_ends(source: Path, kept: int) -> None:
    torn = source.with_name("torn.gguf")
    torn.write_bytes(source.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"torn\.gguf is not a readable GGUF file"):
        read_facts(torn)
    with pytest.raises(WeightsError, match=r"torn\.gguf"):
        requantise(torn, source.with_name("target.gguf"), progress=False)


@pytest.mark.parametrize("content", [b"", b"\0", b"GGUF", b"<html>404 Not Found</html>" * 20, bytes(5000)])
def test_what_is_no_gguf_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"other\.gguf is not a readable GGUF file .* Delete it and fetch it again"):
        read_facts(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.gguf"):
        read_facts(tmp_path / "absent.gguf")


def test_a_file_that_says_nothing_of_its_context_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("w", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match=r"its metadata lacks 'llama\.context_length'"):
        read_facts(path)


def test_a_matrix_that_q8_0_cannot_hold_is_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(16)
    writer.add_head_count(1)
    writer.add_tensor("odd.weight", np.zeros((2, WIDTH + FEED_FORWARD + 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match=r"odd\.weight cannot be converted to Q8_0"):
        requantise(path, tmp_path / "target.gguf", progress=False)
