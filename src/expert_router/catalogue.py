"""Experts that were added while the system ran, on disk: numbered versions that never change, and which one counts.

    catalogue/CURRENT                       the number of the version that counts
    catalogue/versions/3/version.json       what changed, when, and from which version
    catalogue/versions/3/experts/<name>/    an added expert: manifest, examples, knowledge, what the router learnt

A version is written beside the others under a name that nobody reads, then renamed, then ``CURRENT`` is replaced. Each
is one step for the file system, so whoever is killed at any point leaves the version before or the version after. What
a version has from the one before it are hard links: they cost no space.
"""

from __future__ import annotations

import csv
import filecmp
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from expert_router.artifacts import load_expert, within, write_atomically
from expert_router.errors import ConfigError, InvalidRequestError, NotReadyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from expert_router.types import Expert

CURRENT, ABOUT, UNFINISHED = "CURRENT", "version.json", ".new-"
EXAMPLES_FILE, ROUTER_FOLDER, KNOWLEDGE_FOLDER = "examples.csv", "router", "knowledge"
LOCK_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Version:
    """``added`` are the folders of added experts by name, ``hidden`` the shipped experts that were taken away."""

    number: int = 0
    parent: int | None = None
    change: str = "as shipped"
    made: str = ""
    added: Mapping[str, Path] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()

    def experts(self, shipped: Mapping[str, Expert]) -> dict[str, Expert]:
        """Who can answer: those that ship and were not taken away, then the added ones.

        Raises ``ConfigError`` when a manifest cannot be read.
        """
        visible = {name: expert for name, expert in shipped.items() if name not in self.hidden}
        return visible | {name: load_expert(folder / "expert.toml", folder) for name, folder in self.added.items()}


class Catalogue:
    """One process changes it at a time, whoever reads waits for nobody."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._versions = folder / "versions"
        self._lock = FileLock(folder / ".lock", timeout=LOCK_TIMEOUT_S)

    def current_number(self) -> int:
        """The version that counts; 0, as shipped, where nothing was ever changed. Raises ``ConfigError``."""
        try:
            return int((self.folder / CURRENT).read_text("ascii"))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.folder / CURRENT} does not name a version ({error}). {self._advice()}") from error

    def current(self) -> Version:
        return self.read(self.current_number())

    def read(self, number: int) -> Version:
        """Raises ``ConfigError`` when there is no such version, or it cannot be read."""
        if number == 0:
            return Version()
        folder = self._versions / str(number)
        try:
            about = json.loads((folder / ABOUT).read_text("utf-8"))
            added = {name: within(folder / "experts", name) for name in about["added"]}
            return Version(number, about["parent"], about["change"], about["made"], added, frozenset(about["hidden"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{folder} is not a version of the catalogue ({error!r}). {self._advice()}") from error

    def versions(self) -> list[Version]:
        """All of them, oldest first, the one as shipped included."""
        return [self.read(number) for number in (0, *self._numbers())]

    def change(
        self,
        what: str,
        *,
        put: Mapping[str, Callable[[Path], None]] | None = None,
        drop: Iterable[str] = (),
        hide: Iterable[str] = (),
    ) -> Version:
        """Make the next version and let it count; ``put`` writes each new expert's folder, in place of an older one.

        A folder that ``put`` is given holds the expert as it was; its files are older versions' too, so they are
        replaced, never written into. Raises what ``changing`` and ``put`` raise.
        """
        with self.changing():
            before = self.current()
            written = put or {}
            kept = {name: folder for name, folder in before.added.items() if name not in set(drop)}
            number = max([0, *self._numbers()]) + 1
            new = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self._versions))
            for name, folder in kept.items():
                shutil.copytree(folder, new / "experts" / name, copy_function=_link)
            for name, write in written.items():
                (new / "experts" / name).mkdir(parents=True, exist_ok=True)
                write(new / "experts" / name)
            about = {
                "parent": before.number,
                "change": what,
                "made": datetime.now(UTC).isoformat(timespec="seconds"),
                "added": list(kept | dict.fromkeys(written)),
                "hidden": sorted(before.hidden | set(hide)),
            }
            write_atomically(new / ABOUT, (json.dumps(about, indent=2) + "\n").encode())
            new.chmod(0o755)
            new.rename(self._versions / str(number))
            try:
                self._point_to(number)
            except OSError:
                shutil.rmtree(self._versions / str(number), ignore_errors=True)
                raise
            return self.read(number)

    def rollback(self, to: int | None = None) -> Version:
        """Let an earlier version count, by default the one before. It and those after it stay as they are.

        Raises ``InvalidRequestError`` when there is no such version, and what ``changing`` raises.
        """
        with self.changing():
            number = self.current().parent if to is None else to
            if number is None:
                raise InvalidRequestError("There is no version before the first: nothing was changed yet.")
            if number not in {0, *self._numbers()}:
                raise InvalidRequestError(f"There is no version {number}. Known: {self._known()}.", param="version")
            version = self.read(number)
            self._point_to(number)
            return version

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Nobody else changes anything meanwhile. Whatever is raised inside, the version that counted before counts.

        ``change`` and ``rollback`` may be called inside. What a killed process left unfinished is swept away. Raises
        ``NotReadyError`` when another process does not come to an end, ``ConfigError`` when nothing can be written.
        """
        try:
            self._versions.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise NotReadyError(
                f"Another process has been changing the experts for {LOCK_TIMEOUT_S:.0f} s: try again once it is done."
            ) from None
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._sweep()
            before = self.current_number()
            try:
                yield
            except BaseException:
                if self.current_number() != before:
                    self._point_to(before)
                raise
            finally:
                self._sweep()
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            self._lock.release()

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"{self.folder} cannot be written ({error}), so the experts are as they were. Make room or allow writing, "
            "or set paths.catalogue to another folder."
        )

    def _sweep(self) -> None:
        for path in self._versions.glob(f"{UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(f".{CURRENT}.*"):  # of ``write_atomically``
            path.unlink(missing_ok=True)

    def _point_to(self, number: int) -> None:
        write_atomically(self.folder / CURRENT, f"{number}\n".encode())

    def _numbers(self) -> list[int]:
        if not self._versions.is_dir():
            return []
        return sorted(int(path.name) for path in self._versions.iterdir() if path.name.isdecimal())

    def _known(self) -> str:
        return ", ".join(map(str, (0, *self._numbers())))

    def _advice(self) -> str:
        return f"Write into {self.folder / CURRENT} one of: {self._known()}."


def read_taught(folder: Path) -> list[str]:
    """The questions that an added expert was taught with, or else what it is about. Raises ``ConfigError``."""
    path = folder / EXAMPLES_FILE
    try:
        with path.open(encoding="utf-8", newline="") as file:
            examples = [row["question"] for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise ConfigError(f"{path} does not hold an added expert's examples: {error!r}") from error
    expert = load_expert(folder / "expert.toml", folder)
    return taught(examples, expert.title, expert.description)


def taught(examples: Sequence[str], title: str, description: str) -> list[str]:
    """The questions that the router learns from; without any, what the expert is about."""
    return list(examples) or [f"{title}: {description}"]


def same_expert(folder: Path, other: Path) -> bool:
    """Whether two folders hold the same expert, whatever the router was taught of it."""
    names = {
        path.relative_to(place)
        for place in (folder, other)
        for path in place.rglob("*")
        if path.is_file() and path.relative_to(place).parts[0] != ROUTER_FOLDER
    }
    return not any(filecmp.cmpfiles(folder, other, names, shallow=False)[1:])


def _link(source: str, target: str) -> str:
    """A second name for the same file, which nobody writes into; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
