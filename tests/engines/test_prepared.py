"""The cache of prepared models, with real builds of a model of random weights, in real processes where it matters."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from tiny_gguf import MODULES, write_llama, write_lora

from expert_router.engines.gguf import ModelFacts
from expert_router.engines.prepared import RECIPE, PreparedModel, prepare_model
from expert_router.errors import WeightsError
from expert_router.types import Adapter
from support import eventually, run_on_full_disk

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
from expert_router.engines.prepared import prepare_model
from expert_router.types import Adapter
import openvino_genai
print("begins", flush=True)
_, weights, sha256, cache, *adapter = sys.argv
merged = Adapter(Path(adapter[0]), adapter[1]) if adapter else None
print(prepare_model("random", Path(weights), sha256, Path(cache), adapter=merged, progress=False).folder)
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "random.gguf"
    write_llama(path)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def prepare(weights: Path, cache: Path, adapter: Adapter | None = None) -> PreparedModel:
    return prepare_model("random", weights, sha256(weights), cache, adapter=adapter, progress=False)


def an_adapter(folder: Path, weights: Path, *, seed: int = 0, modules: tuple[str, ...] = tuple(MODULES)) -> Adapter:
    write_lora(folder, weights, seed=seed, modules=modules)
    return Adapter(folder, sha256(folder / "adapter_model.safetensors"))


def in_another_process(
    weights: Path, digest: str, cache: Path, adapter: Adapter | None = None
) -> subprocess.Popen[str]:
    merged = [str(adapter.path), adapter.sha256] if adapter else []
    command = [sys.executable, "-c", PROGRAM, str(weights), digest, str(cache), *merged]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def built_at(model: PreparedModel) -> int:
    return (model.folder / "manifest.json").stat().st_mtime_ns


def leftovers(cache: Path) -> list[str]:
    """What lies in the cache besides finished models and locks."""
    return [
        p.name for p in (cache / "prepared").iterdir() if p.suffix != ".lock" and not (p / "manifest.json").exists()
    ]


def test_a_model_is_built_once_and_found_again_without_its_weights(weights: Path, cache: Path) -> None:
    digest = sha256(weights)
    first = prepare(weights, cache)
    assert first.facts == ModelFacts("llama", 256)
    assert first.folder == cache / "prepared" / f"random-{digest[:12]}-r{RECIPE}"
    assert first.size_bytes == sum(p.stat().st_size for p in first.folder.iterdir() if p.name != "manifest.json")
    assert {"openvino_model.xml", "openvino_tokenizer.xml", "openvino_detokenizer.xml"} <= {
        path.name for path in first.folder.iterdir()
    }
    assert not list(first.folder.glob("*.gguf"))
    when = built_at(first)
    weights.unlink()
    assert prepare_model("random", weights, digest, cache, progress=False) == first
    assert built_at(first) == when
    assert leftovers(cache) == []


def test_changed_weights_are_another_model(weights: Path, cache: Path) -> None:
    first = prepare(weights, cache)
    write_llama(weights, seed=1)
    second = prepare(weights, cache)
    assert first.folder != second.folder
    assert first.folder.is_dir()


def cut_short(folder: Path) -> None:
    file = folder / "openvino_model.bin"
    file.write_bytes(file.read_bytes()[:-1])


def lose_a_file(folder: Path) -> None:
    (folder / "openvino_tokenizer.xml").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def flip_bits(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


def flip_weights(folder: Path) -> None:
    flip_bits(folder / "openvino_model.bin")


def flip_graph(folder: Path) -> None:
    flip_bits(folder / "openvino_model.xml")


@pytest.mark.parametrize("damage", [cut_short, lose_a_file, lose_the_manifest, flip_weights, flip_graph])
def test_a_damaged_model_is_built_anew(weights: Path, cache: Path, damage: object) -> None:
    whole = prepare(weights, cache)
    hashes = {path.name: sha256(path) for path in whole.folder.iterdir() if path.suffix == ".bin"}
    damage(whole.folder)  # type: ignore[operator]
    again = prepare(weights, cache)
    assert (again.folder, again.facts) == (whole.folder, whole.facts)
    assert {name: sha256(whole.folder / name) for name in hashes} == hashes


def test_a_model_of_before_there_were_hashes_is_taken_by_its_sizes(weights: Path, cache: Path) -> None:
    manifest = prepare(weights, cache).folder / "manifest.json"
    about = json.loads(manifest.read_text())
    del about["sha256"]
    manifest.write_text(json.dumps(about))
    prepare(weights, cache)
    assert json.loads(manifest.read_text()) == about


def test_weights_that_were_altered_are_refused_with_what_mends_them(weights: Path, cache: Path) -> None:
    digest = sha256(weights)
    flip_bits(weights)
    with pytest.raises(WeightsError, match=r"was altered.* weights verify random, then .* weights fetch random"):
        prepare_model("random", weights, digest, cache, progress=False)
    assert leftovers(cache) == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": [], "facts": {}}', '{"files": {}, "facts": {"x": 1}}'])
def test_a_manifest_that_is_none_is_not_believed(weights: Path, cache: Path, content: str) -> None:
    folder = cache / "prepared" / f"random-{sha256(weights)[:12]}-r{RECIPE}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(content)
    assert json.loads((prepare(weights, cache).folder / "manifest.json").read_text())["files"]


@pytest.mark.parametrize("with_adapter", [False, True], ids=["the base", "with an adapter"])
def test_a_killed_build_is_never_taken_as_finished_and_its_rest_is_removed(
    weights: Path, cache: Path, with_adapter: bool
) -> None:
    adapter = an_adapter(cache.with_name("adapter"), weights) if with_adapter else None
    process = in_another_process(weights, sha256(weights), cache, adapter)
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    eventually(lambda: any((cache / "prepared").glob(".random-*")), within_s=10)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not list((cache / "prepared").glob("random-*/manifest.json"))
    assert leftovers(cache) != []  # or the test has killed nothing
    assert prepare(weights, cache, adapter).modules == (len(MODULES) if with_adapter else 0)
    assert leftovers(cache) == []


def test_a_folder_that_is_only_half_there_is_replaced(weights: Path, cache: Path) -> None:
    whole = prepare(weights, cache)
    half = cache / "half"
    shutil.copytree(whole.folder, half)
    (half / "openvino_model.bin").unlink()
    shutil.rmtree(whole.folder)
    half.rename(whole.folder)
    assert prepare(weights, cache) == whole


def test_a_second_process_waits_for_the_first_and_takes_what_it_built(weights: Path, cache: Path) -> None:
    digest = sha256(weights)
    whole = prepare(weights, cache)
    aside = whole.folder.rename(cache / "aside")
    with FileLock(f"{whole.folder}.lock"):
        process = in_another_process(weights.with_name("absent.gguf"), digest, cache)  # it could not build it itself
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        time.sleep(0.3)
        assert process.poll() is None
        aside.rename(whole.folder)
    out, error = process.communicate(timeout=20)
    assert (out, process.returncode) == (f"{whole.folder}\n", 0), error


def test_a_second_thread_waits_too(weights: Path, cache: Path) -> None:
    found: list[PreparedModel] = []
    threads = [threading.Thread(target=lambda: found.append(prepare(weights, cache))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(found) == 3
    assert len({model.folder for model in found}) == 1
    assert leftovers(cache) == []


def run_with_a_limit(weights: Path, cache: Path, file_bytes: int, adapter: Adapter | None = None) -> str:
    """What the process said that could write no file of more than ``file_bytes``: like a disk that becomes full."""
    merged = [str(adapter.path), adapter.sha256] if adapter else []
    command = [sys.executable, "-c", PROGRAM, str(weights), sha256(weights), str(cache), *merged]
    done = run_on_full_disk(command, file_bytes)
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("file_bytes", [30_000, 100_000], ids=["while requantising", "while the library writes"])
def test_a_full_disk_is_an_error_that_says_so_and_leaves_nothing(weights: Path, cache: Path, file_bytes: int) -> None:
    said = run_with_a_limit(weights, cache, file_bytes)
    assert said.startswith("expert_router.errors.WeightsError: Preparing random from ")
    assert said.endswith("Free some space there and retry.")
    assert leftovers(cache) == []
    assert prepare(weights, cache).facts.context_tokens == 256


def test_a_cache_that_cannot_be_used_is_an_error(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(WeightsError, match="Preparing random from"):
        prepare(weights, tmp_path / "file" / "cache")


def test_weights_that_are_no_model_are_an_error_and_leave_nothing(weights: Path, cache: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:9000])
    with pytest.raises(WeightsError, match="is not a readable GGUF file"):
        prepare(weights, cache)
    assert leftovers(cache) == []


# With an adapter


def model_bytes(model: PreparedModel) -> bytes:
    return (model.folder / "openvino_model.bin").read_bytes()


def test_an_adapter_is_merged_into_a_model_of_its_own_whose_folder_names_both(
    weights: Path, cache: Path, tmp_path: Path
) -> None:
    base = prepare(weights, cache)
    adapter = an_adapter(tmp_path / "adapter", weights)
    merged = prepare(weights, cache, adapter)
    digests = f"{sha256(weights)[:12]}-{adapter.sha256[:12]}"
    assert merged.folder == cache / "prepared" / f"random-{digests}-r{RECIPE}"
    assert (base.modules, merged.modules) == (0, len(MODULES))
    assert model_bytes(merged) != model_bytes(base)
    assert prepare(weights, cache) == base  # still the bare one
    assert leftovers(cache) == []


def test_a_merged_model_is_built_once_and_found_again_without_its_parts(
    weights: Path, cache: Path, tmp_path: Path
) -> None:
    adapter = an_adapter(tmp_path / "adapter", weights, modules=("attn_q", "attn_v"))
    digest = sha256(weights)
    first = prepare(weights, cache, adapter)
    when = built_at(first)
    weights.unlink()
    shutil.rmtree(adapter.path)
    again = prepare_model("random", weights, digest, cache, adapter=adapter, progress=False)
    assert (again, built_at(again), again.modules) == (first, when, 2)


def test_another_adapter_is_another_folder(weights: Path, cache: Path, tmp_path: Path) -> None:
    first, second = (prepare(weights, cache, an_adapter(tmp_path / str(seed), weights, seed=seed)) for seed in range(2))
    assert first.folder != second.folder
    assert first.folder.is_dir()
    assert model_bytes(first) != model_bytes(second)


def test_an_adapter_that_does_not_fit_is_an_error_and_leaves_nothing(
    weights: Path, cache: Path, tmp_path: Path
) -> None:
    write_llama(tmp_path / "larger.gguf", blocks=2)
    adapter = an_adapter(tmp_path / "adapter", tmp_path / "larger.gguf")
    with pytest.raises(WeightsError, match="7 of the adapter's 14 modules are not in the base model"):
        prepare(weights, cache, adapter)
    assert leftovers(cache) == []
    assert not list((cache / "prepared").glob("random-*/"))


def test_a_full_disk_leaves_no_merged_model_either(weights: Path, cache: Path, tmp_path: Path) -> None:
    adapter = an_adapter(tmp_path / "adapter", weights)
    said = run_with_a_limit(weights, cache, 30_000, adapter)
    assert said.startswith("expert_router.errors.WeightsError: Preparing random from ")
    assert leftovers(cache) == []
    assert prepare(weights, cache, adapter).modules == len(MODULES)
