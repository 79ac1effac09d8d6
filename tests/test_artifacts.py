from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.artifacts import (
    install_abstention,
    install_adapter,
    install_variant,
    load_expert,
    load_experts,
    read_artifact,
    sha256_of,
    write_artifact,
    write_atomically,
)
from expert_router.errors import ConfigError
from expert_router.evaluation.questions import unanswerable_questions
from expert_router.knowledge.corpus import read_corpus
from expert_router.training.examples import read_questions, read_reading
from expert_router.types import Abstention, Adapter, ModelVariant
from support import ROOT, run_on_full_disk

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
ADAPTED = MANIFEST + "[adapters]\nbase = {path = 'x', sha256 = '5'}\n"


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
    program = (
        "import sys; from pathlib import Path; from expert_router.artifacts import write_atomically;"
        "write_atomically(Path(sys.argv[1]), bytes(5000))"
    )
    done = run_on_full_disk([sys.executable, "-B", "-c", program, str(path)], 1000)
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
    assert (expert.examples, expert.base_model, expert.adapters, expert.questions) == ((), None, {}, None)
    assert (expert.knowledge, expert.reading) == (None, None)
    assert expert.split_name == "birds"


def test_paths_count_from_home_and_the_adapters_from_the_manifest(tmp_path: Path) -> None:
    extra = """
    examples = ["Why do birds sing?"]
    base_model = "smollm2-135m-instruct"
    [data]
    questions = "data/raw/birds.csv"
    split_name = "bird"
    knowledge = "data/knowledge/birds"
    reading = "data/reading/birds.csv"
    [adapters]
    "smollm2-135m-instruct" = { path = "adapters/smollm2-135m-instruct", sha256 = "ab12" }
    "org/larger" = { path = "adapters/org--larger", sha256 = "cd34" }
    """
    path = write_manifest(tmp_path, MANIFEST + extra)
    expert = load_expert(path, tmp_path)
    assert expert.questions == tmp_path / "data/raw/birds.csv"
    assert expert.knowledge == tmp_path / "data/knowledge/birds"
    assert expert.reading == tmp_path / "data/reading/birds.csv"
    assert expert.adapters == {
        "smollm2-135m-instruct": Adapter(path.parent / "adapters/smollm2-135m-instruct", "ab12"),
        "org/larger": Adapter(path.parent / "adapters/org--larger", "cd34"),
    }
    assert (expert.examples, expert.split_name) == (("Why do birds sing?",), "bird")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MANIFEST + "colour = 'red'", "unknown keys ['colour']; known: ['abstention', "),
        (MANIFEST + "[adapter]\npath = 'x'", "unknown keys ['adapter']"),
        (MANIFEST + "[data]\nquesions = 'x.csv'", "data must be a table with no other keys than"),
        (MANIFEST + "data = 'x.csv'", "data must be a table"),
        (MANIFEST + "adapters = 'x'", "adapters must be a table"),
        (MANIFEST + "adapters = ['x']", "adapters must be a table"),
        (MANIFEST + "[adapters]\nbase = 'x'", "the adapter for 'base' must have a path and a sha256"),
        (MANIFEST + "[adapters]\nbase = {path = 'x'}", "the adapter for 'base' must have a path and a sha256"),
        (MANIFEST + "[adapters]\nbase = {path = 'x', sha256 = 5}", "the adapter for 'base' must have a path"),
        (MANIFEST + "[adapters]\nbase = {path = 'x', sha256 = '5', rank = 4}", "and nothing else"),
        (MANIFEST + "[adapters]\nbase = {path = 'x', sha256 = '5', rank = '4'}", "and nothing else"),
        (MANIFEST + "examples = 'Why?'", "examples is not a list"),
        (MANIFEST.replace('"Birds"', "5"), "title is missing or is not text"),
        (MANIFEST.replace('title = "Birds"', ""), "title is missing or is not text"),
        (MANIFEST + "serve_as = 'x'", "serve_as must be a table"),
        (MANIFEST + "abstention = 'x'", "abstention must be a table"),
        (ADAPTED + "[abstention]\nbase = {bias = 1.0}", "must have adapter, bias, doubt, match, and nothing else"),
        (ADAPTED + "[abstention]\nbase = 'x'", "must have adapter, bias, doubt, match, and nothing else"),
        (ADAPTED + "[abstention]\nbase = {adapter = '5', bias = 'x', doubt = 1, match = 1}", "must be numbers"),
        (ADAPTED + "[abstention]\nbase = {adapter = '5', bias = nan, doubt = 1, match = 1}", "must be numbers"),
        (
            MANIFEST + "[abstention]\nbase = {adapter = '5', bias = 1, doubt = 1, match = 1}",
            "for which there is no adapter",
        ),
        (ADAPTED + "[serve_as]\nbase = {base = 'base'}", "must have a base and a quantization, and nothing else"),
        (ADAPTED + "[serve_as]\nbase = {base = 'b', quantization = 'q4_0'}", "'b', for which there is no adapter"),
        (ADAPTED + "[serve_as]\nbase = {base = 'base', quantization = 'q9'}", "must be one of q8_0, q4_0"),
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


# Installing an adapter

COMMENTED = """# The birds' expert.
name = "birds"   # lower case
title = "Birds"
description = "All about birds."
instructions = '''
Be brief.

[data] is not a table here.
'''

[data]
# where the questions are
questions = "data/raw/birds.csv"
"""


def trained(folder: Path, content: bytes = b"weights") -> Path:
    """What PEFT leaves, and a file that nobody needs."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_bytes(b'{"r": 4, "base_model_name_or_path": "/home/me/base"}')
    (folder / "adapter_model.safetensors").write_bytes(content)
    (folder / "README.md").write_text("a template")
    return folder


def test_an_installed_adapter_is_found_by_its_expert_and_whole(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, COMMENTED)
    run = trained(tmp_path / "run")
    adapter = install_adapter(path.parent, "org/base", run, {"canary": {"prompt": "Who?", "answer": "Me."}})
    assert adapter == Adapter(path.parent / "adapters" / "org--base", hashlib.sha256(b"weights").hexdigest())
    assert load_expert(path, tmp_path).adapters == {"org/base": adapter}
    manifest = read_artifact(adapter.path)
    assert manifest["canary"] == {"prompt": "Who?", "answer": "Me."}
    assert manifest["files"]["adapter_model.safetensors"] == adapter.sha256
    assert {file.name for file in adapter.path.iterdir()} == {
        "manifest.json",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert (adapter.path / "adapter_model.safetensors").read_bytes() == b"weights"
    config = json.loads((adapter.path / "adapter_config.json").read_text("utf-8"))
    assert config == {"r": 4, "base_model_name_or_path": "org/base"}, "a trainer's own paths stay at home"


def test_an_adapter_with_a_broken_configuration_is_not_installed(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, COMMENTED)
    run = trained(tmp_path / "run")
    (run / "adapter_config.json").write_text("[")
    with pytest.raises(ConfigError, match="not an adapter as PEFT saves it"):
        install_adapter(path.parent, "base", run, {})
    assert path.read_text("utf-8") == COMMENTED


def test_only_a_table_of_adapters_is_added_to_the_manifest(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, COMMENTED)
    before = load_expert(path, tmp_path)
    adapter = install_adapter(path.parent, "base", trained(tmp_path / "run"), {})
    line = f'"base" = {{ path = "adapters/base", sha256 = "{adapter.sha256}" }}'
    assert path.read_text("utf-8") == f"{COMMENTED}\n[adapters]\n{line}\n"
    assert load_expert(path, tmp_path) == replace(before, adapters={"base": adapter})


def test_installing_twice_changes_nothing(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, COMMENTED)
    run = trained(tmp_path / "run")
    first = install_adapter(path.parent, "base", run, {"seed": 1})
    files = {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}
    assert install_adapter(path.parent, "base", run, {"seed": 1}) == first
    assert {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()} == files


def test_an_adapter_that_was_trained_anew_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, COMMENTED)
    old = install_adapter(path.parent, "base", trained(tmp_path / "old"), {})
    new = install_adapter(path.parent, "base", trained(tmp_path / "new", b"other weights"), {})
    assert load_expert(path, tmp_path).adapters == {"base": new}
    assert new.path == old.path
    assert sha256_of(new.path / "adapter_model.safetensors") == new.sha256 != old.sha256
    assert path.read_text("utf-8").count("adapters") == 2  # the table and one path


def test_a_second_base_adds_a_line_and_leaves_the_first(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, COMMENTED)
    first = install_adapter(path.parent, "base", trained(tmp_path / "first"), {})
    before = path.read_text("utf-8").splitlines()
    second = install_adapter(path.parent, "base-2", trained(tmp_path / "second", b"2"), {})
    assert load_expert(path, tmp_path).adapters == {"base": first, "base-2": second}
    assert read_artifact(first.path)
    after = path.read_text("utf-8").splitlines()
    assert [line for line in after if line in before] == before
    assert len(after) == len(before) + 1


@pytest.mark.parametrize(
    "tail",
    ["[adapters]\n", "[adapters]  # on several bases\n", "\n[adapters]\n# by hand\n\n[data]\nsplit_name = 'bird'\n"],
)
def test_a_table_that_is_there_is_filled_where_it_is(tmp_path: Path, tail: str) -> None:
    path = write_manifest(tmp_path, MANIFEST + tail)
    adapter = install_adapter(path.parent, "base", trained(tmp_path / "run"), {})
    assert load_expert(path, tmp_path).adapters == {"base": adapter}
    before, after = (MANIFEST + tail).splitlines(), path.read_text("utf-8").splitlines()
    assert [line for line in after if not line.startswith('"base"')] == before


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_run_that_lacks_a_file_is_refused_and_changes_nothing(tmp_path: Path, name: str) -> None:
    path = write_manifest(tmp_path, COMMENTED)
    run = trained(tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(ConfigError, match=rf"run is not an adapter as PEFT saves it: .*{re.escape(name)}"):
        install_adapter(path.parent, "base", run, {})
    assert path.read_text("utf-8") == COMMENTED
    assert [each.name for each in path.parent.iterdir()] == ["expert.toml"]


@pytest.mark.parametrize(
    "tail",
    ["[adapters]\nbase = { path = 'a', sha256 = 'b' }\n",
     "[adapters.base]\npath = 'a'\nsha256 = 'b'\n",
     "adapters = { other = { path = 'a', sha256 = 'b' } }\n"],
)  # fmt: skip
def test_a_manifest_that_spells_its_adapters_otherwise_is_left_alone_and_says_the_line(
    tmp_path: Path, tail: str
) -> None:
    path = write_manifest(tmp_path, MANIFEST + tail)
    with pytest.raises(ConfigError, match=r'Set it there by hand: "base" = \{ path = "adapters/base", sha256 = "'):
        install_adapter(path.parent, "base", trained(tmp_path / "run"), {})
    assert path.read_text("utf-8") == MANIFEST + tail
    assert [each.name for each in path.parent.iterdir()] == ["expert.toml"]


@pytest.mark.parametrize("content", [None, b"name = ", b"adapters = 'x'", b"\xff"])
def test_without_a_manifest_nothing_is_installed(tmp_path: Path, content: bytes | None) -> None:
    path = write_manifest(tmp_path, "")
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"expert\.toml is not an expert manifest: "):
        install_adapter(path.parent, "base", trained(tmp_path / "run"), {})
    assert not (path.parent / "adapters").exists()


# Installing a variant


def variants(path: Path) -> dict[str, ModelVariant]:
    return dict(load_expert(path, path.parent).serve_as)


def adapted_twice(home: Path) -> Path:
    path = write_manifest(home, COMMENTED)
    for base in ("base", "base-20-layers"):
        install_adapter(path.parent, base, trained(home / f"run-{base}", base.encode()), {})
    return path


def test_a_variant_is_said_in_one_line_and_the_configured_base_itself_in_none(tmp_path: Path) -> None:
    path = adapted_twice(tmp_path)
    before = path.read_text("utf-8")
    pruned = ModelVariant("base-20-layers", "q4_0")
    install_variant(path.parent, "base", pruned)
    assert variants(path) == {"base": pruned}
    assert path.read_text("utf-8").startswith(before)
    install_variant(path.parent, "base", ModelVariant("base", "q4_0"))
    assert variants(path) == {"base": ModelVariant("base", "q4_0")}
    install_variant(path.parent, "base", ModelVariant("base", "q8_0"))
    assert variants(path) == {}
    assert len(load_expert(path, tmp_path).adapters) == 2


def test_an_adapter_that_was_trained_anew_was_never_measured_and_ends_its_variants(tmp_path: Path) -> None:
    path = adapted_twice(tmp_path)
    install_variant(path.parent, "base", ModelVariant("base-20-layers", "q4_0"))
    install_adapter(path.parent, "base", trained(tmp_path / "anew", b"anew"), {})
    assert variants(path) == {"base": ModelVariant("base-20-layers", "q4_0")}  # its adapter is the old one
    install_adapter(path.parent, "base-20-layers", trained(tmp_path / "again", b"again"), {})
    assert variants(path) == {}


def test_a_manifest_that_spells_its_variants_otherwise_is_left_alone(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, ADAPTED + "[serve_as.base]\nbase = 'base'\nquantization = 'q4_0'\n")
    before = path.read_text("utf-8")
    with pytest.raises(ConfigError, match="names its serve_as in a way that is left alone"):
        install_variant(path.parent, "base", ModelVariant("base", "q8_0"))
    assert path.read_text("utf-8") == before


# When an expert abstains


def rule_for(content: bytes, bias: float = -1.5) -> Abstention:
    return Abstention(hashlib.sha256(content).hexdigest()[:12], bias, 1.0, -12.25)


def test_a_rule_of_when_to_abstain_is_one_line_beside_the_rest(tmp_path: Path) -> None:
    path = adapted_twice(tmp_path)
    before = path.read_text("utf-8")
    install_abstention(path.parent, "base", rule_for(b"base"))
    install_abstention(path.parent, "base-20-layers", rule_for(b"base-20-layers", 1 / 3))
    install_abstention(path.parent, "base", rule_for(b"base", 2.0))
    assert load_expert(path, tmp_path).abstention == {
        "base": rule_for(b"base", 2.0),
        "base-20-layers": rule_for(b"base-20-layers", 0.3333),
    }
    assert path.read_text("utf-8").startswith(before)


def test_a_rule_goes_with_the_adapter_it_was_calibrated_for(tmp_path: Path) -> None:
    path = adapted_twice(tmp_path)
    for base in ("base", "base-20-layers"):
        install_abstention(path.parent, base, rule_for(base.encode()))
    install_adapter(path.parent, "base", trained(tmp_path / "anew", b"anew"), {})
    assert load_expert(path, tmp_path).abstention == {"base-20-layers": rule_for(b"base-20-layers")}


def test_a_rule_of_other_weights_is_left_out_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = adapted_twice(tmp_path)
    install_abstention(path.parent, "base", rule_for(b"other weights"))
    assert load_expert(path, tmp_path).abstention == {}
    assert "[abstention] is of another adapter than base has" in caplog.text


# All of them


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
        assert expert.knowledge is not None
        assert expert.reading is not None
        titles = {passage.title for passage in read_corpus(expert.knowledge)}
        reading = read_reading(expert.reading)
        assert {item.passage for item in reading} - {""} <= titles
        measured, calibrating = (
            {question.text for question in unanswerable_questions(expert, split)} for split in ("test", "calibration")
        )
        assert min(len(measured), len(calibrating)) >= 100
        assert not measured & calibrating
        assert not (measured | calibrating) & {item.question for item in reading}
        assert expert.unseen is not None
        unseen = {item.question for item in read_questions(expert.unseen)}
        assert len(unseen) >= 150
        assert not unseen & {item.question for item in reading}
