"""One scrape for all processes that answer on one address: whichever is asked asks the others.

Each listens on a socket of its own in a folder that they share. Their series are told apart by the label ``worker``:
one that was replaced begins at 0 again, which Prometheus takes for what it is where each has series of its own.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from expert_router.telemetry.series import Family

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

TIMEOUT_S = 1.0
"""Less than any scrape's: a worker that is stuck or just loading is left out."""
HEAD = "# HELP "
UP = Family("expert_router_worker_up", "gauge", "1 for each process whose metrics are here, 0 where it did not tell.")


@dataclass(slots=True)
class Workers:
    """``number`` is this one of ``total``; ``folder`` is theirs alone."""

    folder: Path
    number: int
    total: int
    _server: asyncio.Server | None = field(default=None, init=False)

    @property
    def label(self) -> str:
        return _label(self.number)

    async def listen(self, exposition: Callable[[], str]) -> None:
        """Tell the others from now on; one that died here before has left its socket behind."""

        async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                writer.write(exposition().encode())
                await writer.drain()
            writer.close()

        path = self._socket(self.number)
        try:
            path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(tell, path)
        except OSError as error:  # a temporary folder with a very long name, for one
            logger.warning("the other workers' scrapes miss this one", extra={"reason": str(error)})

    async def exposition(self, own: str) -> str:
        """Everybody's, in one."""
        others = [number for number in range(self.total) if number != self.number]
        told = dict(zip(others, await asyncio.gather(*map(self._ask, others)), strict=True))
        up = "".join(
            f"{UP.name}{{{_label(number)}}} {int(bool(told.get(number, True)))}\n" for number in range(self.total)
        )
        return merged([own, *filter(None, told.values())]) + UP.head() + up

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._socket(self.number).unlink(missing_ok=True)

    async def _ask(self, number: int) -> str:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(self._socket(number))
                try:
                    return (await reader.read()).decode()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return ""

    def _socket(self, number: int) -> Path:
        return self.folder / f"{number}.sock"


def merged(texts: Sequence[str]) -> str:
    """Expositions as one: the series of a family have to stand together, under one head."""
    families: dict[str, list[str]] = {}
    for text in texts:
        for family in text.split(HEAD)[1:]:
            about, kind, series = family.split("\n", 2)
            families.setdefault(f"{HEAD}{about}\n{kind}\n", []).append(series)
    return "".join(head + "".join(series) for head, series in families.items())


def _label(number: int) -> str:
    return f'worker="{number}"'
