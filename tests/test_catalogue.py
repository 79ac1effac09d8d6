"""Versions of the experts on disk: they never change, one counts, and whoever is killed leaves a whole one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from expert_router.catalogue import CURRENT, EXAMPLES_FILE, Catalogue, read_taught
from expert_router.errors import ConfigError, InvalidRequestError
from expert_router.types import Expert
from support import EXPERTS, eventually, run_on_full_disk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MANIFEST = 'name = "{name}"\ntitle = "{title}"\ndescription = "d"\ninstructions = "i"\n'


def expert(name: str, title: str = "First") -> Callable[[Path], None]:
    """Writes an expert's folder as an editor would: each file is a new one."""

    def write(folder: Path) -> None:
        for path in (folder / "expert.toml", folder / EXAMPLES_FILE):
            path.unlink(missing_ok=True)
        (folder / "expert.toml").write_text(MANIFEST.format(name=name, title=title), "utf-8")
        (folder / EXAMPLES_FILE).write_text(f"question\nWhat is {title}?\n", "utf-8")

    return write


def add(catalogue: Catalogue, name: str, title: str = "First") -> None:
    catalogue.change(f"add {name}", put={name: expert(name, title)})


def titles(catalogue: Catalogue, number: int | None = None) -> dict[str, str]:
    version = catalogue.current() if number is None else catalogue.read(number)
    return {name: each.title for name, each in version.experts({}).items()}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(catalogue: Catalogue) -> list[str]:
    """What belongs to no version."""
    found = [*catalogue.folder.iterdir(), *(catalogue.folder / "versions").iterdir()]
    return [
        each.name for each in found if not each.name.isdecimal() and each.name not in {CURRENT, ".lock", "versions"}
    ]


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path / "catalogue")


# Versions


def test_where_nothing_was_changed_the_experts_are_as_shipped_and_nothing_is_written(catalogue: Catalogue) -> None:
    version = catalogue.current()
    assert (version.number, version.parent, version.change) == (0, None, "as shipped")
    assert version.experts(EXPERTS) == EXPERTS
    assert [each.number for each in catalogue.versions()] == [0]
    assert not catalogue.folder.exists()


def test_each_change_is_a_version_that_says_what_when_and_from_which(catalogue: Catalogue) -> None:
    add(catalogue, "a")
    add(catalogue, "b")
    version = catalogue.change("remove a", drop=["a"])
    assert (version.number, version.parent, version.change) == (3, 2, "remove a")
    assert version.made.startswith("20")
    assert catalogue.current() == version
    assert [(each.number, each.parent, sorted(each.added)) for each in catalogue.versions()] == [
        (0, None, []),
        (1, 0, ["a"]),
        (2, 1, ["a", "b"]),
        (3, 2, ["b"]),
    ]
    assert leftovers(catalogue) == []


def test_added_experts_answer_beside_the_shipped_ones_and_hidden_ones_do_not(catalogue: Catalogue) -> None:
    add(catalogue, "a", "Mine")
    version = catalogue.change("remove sleep", hide=["sleep"])
    experts = version.experts(EXPERTS)
    assert list(experts) == ["cars", "a"]
    assert isinstance(experts["a"], Expert)
    catalogue.change("add b", put={"b": expert("b")})
    assert catalogue.current().hidden == {"sleep"}
    assert catalogue.change("remove cars", hide=["cars"]).hidden == {"sleep", "cars"}


def test_a_file_that_was_not_changed_is_the_same_file_and_costs_no_space(catalogue: Catalogue) -> None:
    add(catalogue, "a")
    add(catalogue, "b")
    first, second = (catalogue.read(number).added["a"] / "expert.toml" for number in (1, 2))
    assert first.samefile(second)


def test_the_bytes_of_an_old_version_never_change(catalogue: Catalogue) -> None:
    add(catalogue, "a", "Old")
    kept = files(catalogue.folder / "versions" / "1")
    add(catalogue, "b")
    add(catalogue, "a", "New")
    catalogue.change("remove a", drop=["a"])
    assert files(catalogue.folder / "versions" / "1") == kept
    assert [titles(catalogue, number) for number in (1, 3, 4)] == [
        {"a": "Old"},
        {"a": "New", "b": "First"},
        {"b": "First"},
    ]


def test_the_questions_that_an_expert_was_taught_with_are_read_or_else_its_field(catalogue: Catalogue) -> None:
    add(catalogue, "a", "Roses")
    folder = catalogue.current().added["a"]
    assert read_taught(folder) == ["What is Roses?"]
    (folder / EXAMPLES_FILE).write_text("question\n", "utf-8")
    assert read_taught(folder) == ["Roses: d"]
    (folder / EXAMPLES_FILE).write_text("nothing\nhere\n", "utf-8")
    with pytest.raises(ConfigError, match="does not hold an added expert's examples"):
        read_taught(folder)


# Back


def test_rollback_goes_to_the_version_before_or_to_any(catalogue: Catalogue) -> None:
    for name in ("a", "b"):
        add(catalogue, name)
    assert catalogue.rollback().number == 1
    assert titles(catalogue) == {"a": "First"}
    assert catalogue.rollback(2).number == 2
    assert catalogue.rollback(0).experts(EXPERTS) == EXPERTS
    assert catalogue.current_number() == 0


def test_a_change_after_a_rollback_is_a_new_version_of_what_counts(catalogue: Catalogue) -> None:
    for name in ("a", "b"):
        add(catalogue, name)
    catalogue.rollback()
    version = catalogue.change("add c", put={"c": expert("c")})
    assert (version.number, version.parent, sorted(version.added)) == (3, 1, ["a", "c"])
    assert sorted(catalogue.read(2).added) == ["a", "b"]  # it can still be gone back to
    assert catalogue.rollback().number == 1


@pytest.mark.parametrize("to", [None, 7, -1])
def test_a_version_that_never_was_cannot_be_gone_back_to(catalogue: Catalogue, to: int | None) -> None:
    with pytest.raises(InvalidRequestError, match=r"nothing was changed yet|There is no version -?\d\. Known: 0\."):
        catalogue.rollback(to)
    assert catalogue.current_number() == 0


# Damaged


@pytest.mark.parametrize("content", [b"", b"two", b"1.5", b"\xff", b"9", b"-1"])
def test_a_damaged_pointer_names_the_file_and_what_to_write_into_it(catalogue: Catalogue, content: bytes) -> None:
    add(catalogue, "a")
    (catalogue.folder / CURRENT).write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        catalogue.current()
    assert refused.value.message.endswith(f"Write into {catalogue.folder / CURRENT} one of: 0, 1.")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"{", b"\xff", b'{"parent": 0, "added": 5}', None])
def test_a_damaged_version_names_its_folder_and_the_way_back(catalogue: Catalogue, content: bytes | None) -> None:
    add(catalogue, "a")
    about = catalogue.folder / "versions" / "1" / "version.json"
    about.unlink()
    if content is not None:
        about.write_bytes(content)
    for refusing in (catalogue.current, catalogue.rollback, lambda: add(catalogue, "b")):
        with pytest.raises(ConfigError) as refused:
            refusing()
        assert str(about.parent) in refused.value.message
        assert refused.value.message.endswith(f"Write into {catalogue.folder / CURRENT} one of: 0, 1.")
    assert catalogue.rollback(0).number == 0


def test_an_expert_that_is_missing_or_damaged_is_a_config_error(catalogue: Catalogue) -> None:
    add(catalogue, "a")
    manifest = catalogue.current().added["a"] / "expert.toml"
    manifest.write_text("name =", "utf-8")
    with pytest.raises(ConfigError, match="is not an expert manifest"):
        catalogue.current().experts({})
    manifest.unlink()
    with pytest.raises(ConfigError, match=r"is not an expert manifest: .*No such file"):
        catalogue.current().experts({})


# Changes that fail


def test_a_write_that_fails_midway_leaves_the_version_before_and_nothing_else(catalogue: Catalogue) -> None:
    add(catalogue, "a")
    before = files(catalogue.folder)

    def fail(folder: Path) -> None:
        (folder / "half.csv").write_text("question\n", "utf-8")
        raise OSError("No space left on device")

    with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\), so the experts are as they"):
        catalogue.change("add b", put={"b": fail})
    assert files(catalogue.folder) == before
    assert leftovers(catalogue) == []
    add(catalogue, "b")
    assert titles(catalogue) == {"a": "First", "b": "First"}


def test_whatever_is_raised_while_changing_the_version_before_counts(catalogue: Catalogue) -> None:
    add(catalogue, "a")
    for change in (lambda: add(catalogue, "b"), catalogue.rollback):
        with pytest.raises(InvalidRequestError), catalogue.changing():  # noqa: PT012 - what the block does is the test
            change()
            assert catalogue.current_number() != 1
            catalogue.rollback(99)
        assert catalogue.current_number() == 1


def test_a_folder_that_cannot_be_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    catalogue = Catalogue(tmp_path / "file" / "catalogue")
    with pytest.raises(ConfigError, match=r"Make room or allow writing, or set paths\.catalogue"):
        add(catalogue, "a")


CHANGE = """
import sys
from pathlib import Path
from expert_router.catalogue import Catalogue
from expert_router.errors import ExpertRouterError

def write(folder):
    name = folder.name
    for path in folder.glob("*.*"):
        path.unlink()
    manifest = f'name = "{name}"\\ntitle = "T"\\ndescription = "d"\\ninstructions = "i"\\n'
    (folder / "expert.toml").write_text(manifest, "utf-8")
    (folder / "examples.csv").write_text("question\\n" + "Why?\\n" * int(sys.argv[3]), "utf-8")

catalogue = Catalogue(Path(sys.argv[1]))
"""
ADD_ONE = (
    CHANGE
    + """
try:
    catalogue.change(f"add {sys.argv[2]}", put={sys.argv[2]: write})
except ExpertRouterError as error:
    sys.exit(error.message)
"""
)
ADD_MANY = (
    CHANGE
    + """
for number in range(5):
    name = f"{sys.argv[2]}{number}"
    catalogue.change(f"add {name}", put={name: write}, hide=[name])
"""
)
FOREVER = (
    CHANGE
    + """
print("ready", flush=True)
while True:
    current = catalogue.current()
    if len(current.added) > 3:
        catalogue.rollback(0)
    name = f"e{len(current.added)}"
    catalogue.change(f"add {name}", put={name: write}, drop=["e0"] if name == "e2" else [])
"""
)


def test_a_disk_that_becomes_full_leaves_the_version_before(catalogue: Catalogue) -> None:
    add(catalogue, "a")
    before = files(catalogue.folder)
    done = run_on_full_disk([sys.executable, "-c", ADD_ONE, str(catalogue.folder), "b", "10000"], 4096)
    assert done.returncode == 1
    assert "cannot be written ([Errno 27] File too large" in done.stderr
    assert files(catalogue.folder) == before
    assert leftovers(catalogue) == []


# Several processes


def program(source: str, catalogue: Catalogue, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", source, str(catalogue.folder), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_that_change_at_once_both_take_effect(catalogue: Catalogue) -> None:
    both = [program(ADD_MANY, catalogue, name, "1") for name in ("x", "y")]
    for process in both:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    expected = {f"{name}{number}" for name in "xy" for number in range(5)}
    assert catalogue.current().number == 10
    assert set(catalogue.current().added) == catalogue.current().hidden == expected
    assert [each.parent for each in catalogue.versions()][1:] == list(range(10))


def test_what_a_killed_process_left_is_swept_away_at_the_next_change(catalogue: Catalogue) -> None:
    add(catalogue, "a")
    unfinished = catalogue.folder / "versions" / ".new-killed" / "experts" / "b"
    unfinished.mkdir(parents=True)
    (catalogue.folder / f".{CURRENT}.killed").write_text("2", "ascii")
    assert len(leftovers(catalogue)) == 2
    add(catalogue, "c")
    assert leftovers(catalogue) == []
    assert titles(catalogue) == {"a": "First", "c": "First"}


def test_killed_at_any_moment_it_leaves_a_whole_version_and_the_next_change_works(catalogue: Catalogue) -> None:
    moments = random.Random(0)
    found = set()
    for killed in range(30):
        process = program(FOREVER, catalogue, "-", "1000")
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0, 0.06))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL
        version = catalogue.current()
        experts = version.experts({})
        assert all(len(read_taught(folder)) == 1000 for folder in version.added.values())
        found.add(version.number)
        if killed % 3 == 0:  # and otherwise the next process finds what the killed one left
            after = catalogue.change("add survivor", put={"survivor": expert("survivor")})
            assert set(after.added) == {*experts, "survivor"}
            assert leftovers(catalogue) == []
            catalogue.rollback(version.number)
    assert len(found) > 5


def test_a_reader_waits_for_nobody(catalogue: Catalogue) -> None:
    add(catalogue, "a")
    with catalogue.changing():
        reading = program(CHANGE + "print(catalogue.current().number)", catalogue, "-", "1")
        eventually(lambda: reading.poll() is not None, within_s=20)
        assert reading.communicate()[0] == "1\n"
