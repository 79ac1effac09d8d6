"""Servers that a person has taken out: they get no new requests, and what they answer is finished.

A file with an address a line, so that it counts for every process that serves, stays when one of them starts anew, and
can be written by hand where nothing else works. It is looked at with each request, which costs a ``stat``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from expert_router.artifacts import write_atomically
from expert_router.engines.remote.upstream import checked_address
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

FILE = "draining"


class Draining:
    """The addresses in ``path``; none where it is not there. Lines that begin with ``#`` are left out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[int, int] | None = None
        self._addresses: frozenset[str] = frozenset()

    def addresses(self) -> frozenset[str]:
        try:
            stat = self._path.stat()
        except OSError:
            self._read, self._addresses = None, frozenset()
            return self._addresses
        if (stat.st_mtime_ns, stat.st_ino) != self._read:
            self._read, self._addresses = (stat.st_mtime_ns, stat.st_ino), self._parsed()
        return self._addresses

    def change(self, *, add: str | None = None, remove: str | None = None) -> None:
        """Take a server out, or back in. Raises ``ConfigError`` when it cannot be written."""
        addresses = (self.addresses() | {add}) - {remove}
        text = "".join(f"{address}\n" for address in sorted(filter(None, addresses)))
        try:
            write_atomically(self._path, text.encode())
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be written: {error.strerror}") from error

    def _parsed(self) -> frozenset[str]:
        found = set()
        try:
            lines = self._path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            logger.warning("what drains cannot be read", extra={"file": str(self._path), "reason": str(error)})
            return self._addresses
        for line in filter(None, (line.strip() for line in lines)):
            if not line.startswith("#"):
                try:
                    found.add(checked_address(line))
                except ConfigError:
                    logger.warning("not an address", extra={"file": str(self._path), "line": line})
        return frozenset(found)
