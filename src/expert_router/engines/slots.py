"""How many requests an engine serves, and what became of the others: what health checks and tests read."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class SlotCounters:
    """Requests of one engine by what became of them; ``cancelled`` ones were left by the client."""

    running: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a slot for the body's duration and count how it ended."""
        self.running += 1
        try:
            yield
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            raise
        except BaseException:
            self.failed += 1
            raise
        else:
            self.finished += 1
        finally:
            self.running -= 1


@dataclass(slots=True)
class TokenCounters(SlotCounters):
    """Of an engine that counts what it generates, too."""

    generated_tokens: int = 0
