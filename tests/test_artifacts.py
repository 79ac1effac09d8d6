from __future__ import annotations

import hashlib
import re
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.artifacts import (
    load_expert,
    load_experts,
    read_artifact,
    sha256_of,
    write_artifact,
    write_atomically,
)
from expert_router.errors import ConfigError
from expert_router.types import Adapter
from support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

FILES = {"head.bin": b"\0\1\2" * 1000, "notes.txt": "größer".encode()}

MANIFEST = """
name = "birds"
title = "Birds"
description = "All about birds."
instructions = '''
Be brief.
'''
"""


# Artifacts


def test_an_artifact_comes_back_with_what_was_said_about_it(tmp_path: Path) -> None:
    write_artifact(tmp_path / "new" / "router", FILES, {"seed": 7})
    manifest = read_artifact(tmp_path / "new" / "router")
    assert manifest["seed"] == 7
    assert manifest["files"] == {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    assert sha256_of(tmp_path / "new/router/head.bin") == manifest["files"]["head.bin"]


def test_a_file_with_other_content_is_refused_by_name(tmp_path: Path) -> None:
    write_artifact(tmp_path, FILES, {})
    (tmp_path / "head.bin").write_bytes(FILES["head.bin"][:-1] + b"\xff")
    with pytest.raises(ConfigError, match=r"head\.bin is missing or is not the file that .*manifest\.json pins"):
        read_artifact(tmp_path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    write_artifact(tmp_path, FILES, {})
    (tmp_path / "notes.txt").unlink()
    with pytest.raises(ConfigError, match=r"notes\.txt is missing"):
        read_artifact(tmp_path)


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match=r"There is no artifact in .*: manifest\.json is missing"):
            read_artifact(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"files": []}', b'{"files": null}', b"\xff\xfe"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"manifest\.json is not a manifest: "):
        read_artifact(tmp_path)


def test_writing_anew_replaces_the_whole(tmp_path: Path) -> None:
    write_artifact(tmp_path, FILES, {"seed": 1})
    write_artifact(tmp_path, {"head.bin": b"new"}, {"seed": 2})
    manifest = read_artifact(tmp_path)
    assert (manifest["seed"], list(manifest["files"])) == (2, ["head.bin"])


def test_a_write_that_broke_off_leaves_no_valid_half(tmp_path: Path) -> None:
    write_artifact(tmp_path, {"a": b"1", "b": b"1"}, {})
    with pytest.raises(TypeError):
        write_artifact(tmp_path, {"a": b"2", "b": "no bytes"}, {})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="is not the file that"):
        read_artifact(tmp_path)


# Atomic writes


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def allow_1000_bytes_a_file() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    program = (
        "import sys; from pathlib import Path; from expert_router.artifacts import write_atomically;"
        "write_atomically(Path(sys.argv[1]), bytes(5000))"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", program, str(path)],
        preexec_fn=allow_1000_bytes_a_file, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "File too large" in done.stderr
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_target_that_cannot_be_replaced_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "folder", b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


# Expert manifests


def write_manifest(home: Path, text: str, *, folder: str = "birds") -> Path:
    path = home / "experts" / folder / "expert.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text, "utf-8")
    return path


def test_the_shortest_manifest_is_enough(tmp_path: Path) -> None:
    expert = load_expert(write_manifest(tmp_path, MANIFEST), tmp_path)
    assert (expert.name, expert.title, expert.instructions) == ("birds", "Birds", "Be brief.")
    assert (expert.examples, expert.base_model, expert.adapter, expert.questions) == ((), None, None, None)
    assert expert.split_name == "birds"


def test_paths_count_from_home_and_the_adapters_from_the_manifest(tmp_path: Path) -> None:
    extra = """
    examples = ["Why do birds sing?"]
    base_model = "smollm2-135m-instruct"
    [data]
    questions = "data/raw/birds.csv"
    split_name = "bird"
    [adapter]
    path = "adapter.gguf"
    sha256 = "ab12"
    """
    path = write_manifest(tmp_path, MANIFEST + extra)
    expert = load_expert(path, tmp_path)
    assert expert.questions == tmp_path / "data/raw/birds.csv"
    assert expert.adapter == Adapter(path.parent / "adapter.gguf", "ab12")
    assert (expert.examples, expert.split_name) == (("Why do birds sing?",), "bird")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MANIFEST + "colour = 'red'", "unknown keys ['colour']; known: ['adapter', "),
        (MANIFEST + "[data]\nquesions = 'x.csv'", "data must be a table with no other keys than"),
        (MANIFEST + "data = 'x.csv'", "data must be a table"),
        (MANIFEST + "adapter = 'x.gguf'", "adapter must be a table"),
        (MANIFEST + "[adapter]\npath = 'x.gguf'", "'sha256'"),
        (MANIFEST + "examples = 'Why?'", "examples is not a list"),
        (MANIFEST.replace('"Birds"', "5"), "title is missing or is not text"),
        (MANIFEST.replace('title = "Birds"', ""), "title is missing or is not text"),
        ("name = 5", "name is missing or is not text"),
        ("", "name is missing or is not text"),
        ("name = ", "Invalid value"),
    ],
)
def test_a_mistake_in_a_manifest_is_named_with_its_file(tmp_path: Path, text: str, message: str) -> None:
    path = write_manifest(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(f"{path} is not an expert manifest: ") + ".*" + re.escape(message)):
        load_expert(path, tmp_path)


@pytest.mark.parametrize("name", ["auto", "general", "Birds", "two words", "a-b", "", "9lives", "../birds", "bi.rds"])
def test_a_name_must_be_a_lower_case_word_that_is_not_reserved(tmp_path: Path, name: str) -> None:
    folder = name if name and "/" not in name else "birds"
    path = write_manifest(tmp_path, MANIFEST.replace('name = "birds"', f'name = "{name}"'), folder=folder)
    with pytest.raises(ConfigError, match="must be a lower-case word other than 'auto' and 'general'"):
        load_expert(path, tmp_path)


def test_a_name_must_be_that_of_its_folder(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, MANIFEST, folder="bees")
    with pytest.raises(ConfigError, match="the name 'birds' differs from its folder 'bees'"):
        load_expert(path, tmp_path)


def test_a_manifest_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, "")
    path.write_bytes(MANIFEST.replace("Birds", "Vögel").encode("latin-1"))
    with pytest.raises(ConfigError, match="is not an expert manifest: 'utf-8' codec"):
        load_expert(path, tmp_path)


def test_all_experts_are_loaded_in_alphabetical_order(tmp_path: Path) -> None:
    for name in ("zebras", "ants", "birds"):
        write_manifest(tmp_path, MANIFEST.replace('"birds"', f'"{name}"'), folder=name)
    (tmp_path / "experts" / "notes").mkdir()
    assert list(load_experts(tmp_path / "experts", tmp_path)) == ["ants", "birds", "zebras"]


def test_without_any_expert_it_says_where_they_belong(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match=r"No expert was found: .* has no <name>/expert\.toml"):
            load_experts(folder, tmp_path)


def test_the_shipped_experts_are_whole() -> None:
    experts = load_experts(ROOT / "experts", ROOT)
    assert set(experts) >= {"cars", "sleep"}
    for expert in experts.values():
        described: list[Any] = [expert.title, expert.description, expert.instructions, expert.examples]
        assert all(described)
        assert expert.questions is not None
        assert expert.questions.is_file()
