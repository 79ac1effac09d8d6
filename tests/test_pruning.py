"""Models without some of their layers: the file, its entry in models.lock, and what goes wrong."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
from tiny_gguf import write_llama

from expert_router.artifacts import sha256_of
from expert_router.errors import ConfigError, WeightsError
from expert_router.weights import ensure_model, load_lock
from expert_router.weights.gguf_file import count_layers, leave_out_layers
from support import run_on_full_disk

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = 4


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "whole.gguf"
    write_llama(path, blocks=LAYERS)
    return path


def pruned(source: Path, *layers: int, name: str = "pruned.gguf") -> Path:
    target = source.with_name(name)
    leave_out_layers(source, target, layers)
    return target


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}


# The file


def test_the_layers_that_stay_close_ranks_and_nothing_else_changes(source: Path) -> None:
    whole, small = tensors(source), tensors(pruned(source, 0, 2))
    moved = {"blk.0.": "blk.1.", "blk.1.": "blk.3."}
    assert len(small) == len(whole) - 2 * 9
    for name, data in small.items():
        np.testing.assert_array_equal(data, whole[moved.get(name[:6], name[:6]) + name[6:]])
    assert count_layers(source.with_name("pruned.gguf")) == 2


def test_the_metadata_is_the_sources_but_for_the_count(source: Path) -> None:
    def fields(path: Path) -> dict[str, object]:
        found = gguf.GGUFReader(path).fields.values()
        return {f.name: (f.types, f.contents()) for f in found if not f.name.startswith("GGUF.")}

    before, after = fields(source), fields(pruned(source, 1))
    assert before.pop("llama.block_count") != after.pop("llama.block_count")
    assert after == before


def test_the_same_layers_give_the_same_bytes_in_whatever_order(source: Path) -> None:
    assert pruned(source, 1, 3).read_bytes() == pruned(source, 3, 1, name="again.gguf").read_bytes()


@pytest.mark.parametrize("layers", [(), (4,), (-1, 0), (0, 1, 2, 3)])
def test_what_is_left_out_must_be_some_layers_and_not_all(source: Path, layers: tuple[int, ...]) -> None:
    with pytest.raises(WeightsError, match=r"has the layers 0 to 3; what is left out must be some of them, not all"):
        pruned(source, *layers)
    assert not source.with_name("pruned.gguf").exists()


def test_what_is_no_model_is_refused(source: Path) -> None:
    source.write_bytes(source.read_bytes()[:-500])
    with pytest.raises(WeightsError, match="is not a readable GGUF file"):
        pruned(source, 1)


# In models.lock


def write_lock(source: Path, *, without: str = "[1, 2]", base: str = "whole", sha256: str = "", more: str = "") -> Path:
    target = pruned(source, 1, 2)
    lock = source.with_name("models.lock")
    lock.write_text(
        f"""
[[whole.files]]
name = "whole.gguf"
size = {source.stat().st_size}
sha256 = "{sha256_of(source)}"
licence = "none"
upstream = "random"
sources = [{{ kind = "path", path = "whole.gguf" }}]

[[small.files]]
name = "small.gguf"
size = {target.stat().st_size}
sha256 = "{sha256 or sha256_of(target)}"
licence = "none"
upstream = "random"
sources = [{{ kind = "pruned", base = "{base}", without_layers = {without} }}]
{more}""",
        "utf-8",
    )
    return lock


def bring(lock: Path) -> Path:
    return ensure_model(load_lock(lock)["small"], lock.parent / "cache", token=None, progress=False)["small.gguf"]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_a_pruned_model_is_made_of_its_base_which_is_brought_first(source: Path) -> None:
    lock = write_lock(source)
    path = bring(lock)
    assert path.read_bytes() == source.with_name("pruned.gguf").read_bytes()
    assert (lock.parent / "cache" / "weights" / "whole" / "whole.gguf").is_file()
    made_at = path.stat().st_mtime_ns
    assert bring(lock).stat().st_mtime_ns == made_at
    model = load_lock(lock)["small"]
    assert model.pruned is not None
    assert (str(model.pruned), load_lock(lock)["whole"].pruned) == ("whole without layers 1, 2", None)


def test_other_layers_than_those_of_the_hash_are_refused_and_leave_nothing(source: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"small\.gguf could not be brought: whole without layers 1, 3: its sha256 is"
    ):
        bring(write_lock(source, without="[1, 3]"))
    assert names_in(source.parent / "cache" / "weights" / "small") == {".lock"}


def test_layers_that_the_base_does_not_have_are_named(source: Path) -> None:
    with pytest.raises(WeightsError, match=r"has the layers 0 to 3; .* not all: 1, 9"):
        bring(write_lock(source, without="[1, 9]"))


def test_a_base_that_cannot_be_brought_says_so_itself(source: Path) -> None:
    lock = write_lock(source)
    source.unlink()
    with pytest.raises(WeightsError, match=r"^whole\.gguf could not be brought: path .*: there is no such file"):
        bring(lock)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": "huge"}, "there is no model 'huge'"),
        ({"base": "small"}, "'small' would be made of itself"),
        ({"without": "[]"}, "should have at least 1 item"),
        ({"without": "[-1]"}, "greater than or equal to 0"),
        ({"without": "['one']"}, "should be a valid integer"),
        ({"base": "parts", "more": "[parts]\nfiles = []"}, "model 'parts': files"),
    ],
)
def test_a_mistake_in_the_entry_is_named(source: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_lock(write_lock(source, **changes))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(source: Path) -> None:
    lock = write_lock(source)
    ensure_model(load_lock(lock)["whole"], lock.parent / "cache", token=None, progress=False)
    program = (
        "import sys; from pathlib import Path; from expert_router.weights import ensure_model, load_lock\n"
        "lock = Path(sys.argv[1])\n"
        "ensure_model(load_lock(lock)['small'], lock.parent / 'cache', token=None, progress=False)"
    )
    done = run_on_full_disk([sys.executable, "-B", "-c", program, str(lock)], 30_000)
    assert "WeightsError: small.gguf could not be brought: whole without layers 1, 2: " in done.stderr
    assert names_in(lock.parent / "cache" / "weights" / "small") == {".lock"}
