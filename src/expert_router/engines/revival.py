"""Models whose processes died: how often and of what, and how long each is left alone before it is loaded again."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from expert_router.engines.backoff import doubled
from expert_router.errors import NotReadyError

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

CALM_S = 600.0
"""Who lived so long since its last death dies for the first time again."""


@dataclass(slots=True)
class _Deaths:
    at: float
    why: str
    total: int = 0
    in_a_row: int = 0

    @property
    def pause_s(self) -> float:
        """None after the first, then doubled each time."""
        return 0.0 if self.in_a_row == 1 else doubled(self.in_a_row - 2)


class Revivals:
    """Thread-safe. ``clock`` gives seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deaths: dict[str, _Deaths] = {}
        self._lock = threading.Lock()

    def died(self, name: str, why: str) -> None:
        now = self._clock()
        with self._lock:
            deaths = self._deaths.setdefault(name, _Deaths(now, why))
            if now - deaths.at > CALM_S:
                deaths.in_a_row = 0
            deaths.at, deaths.why = now, why
            deaths.total += 1
            deaths.in_a_row += 1
            pause_s = deaths.pause_s
        logger.error("a model's process ended", extra={"model": name, "why": why, "again_in_s": pause_s})

    def check(self, name: str) -> None:
        """Raises ``NotReadyError`` while it is to be left alone."""
        with self._lock:
            deaths = self._deaths.get(name)
            left_s = 0.0 if deaths is None else deaths.at + deaths.pause_s - self._clock()
            if deaths is None or left_s <= 0:
                return
            said = f"{name} ended {deaths.in_a_row} times in a row, the last time {deaths.why}"
        raise NotReadyError(f"{said}. It is loaded again in {ceil(left_s)} s.", retry_after_s=left_s)

    def status(self) -> dict[str, dict[str, object]]:
        """What happened, by model."""
        with self._lock:
            return {
                name: {"times": deaths.total, "last": deaths.why, "s_ago": round(self._clock() - deaths.at, 1)}
                for name, deaths in self._deaths.items()
            }
