"""How fast a full server makes room."""

from __future__ import annotations

from math import exp


class DrainRate:
    """How fast slots come free in times that count, as those while all are taken.

    While some are free that says nothing of how fast it could be. Slots and seconds fade alike, by a factor e in
    ``FADES_S`` such seconds: their quotient is right from the first on.
    """

    FADES_S = 60.0

    def __init__(self) -> None:
        self._freed = 0.0
        self._seconds = 0.0
        self._since: float | None = None
        """Seconds until here are counted; ``None`` while they do not count."""

    def begin(self, now: float) -> None:
        """From now on it counts."""
        self._since = now

    def count(self, now: float, *, goes_on: bool) -> None:
        """One came free; it ``goes_on`` when what follows counts too, as where it is taken again at once."""
        if self._since is not None:
            seconds = now - self._since
            fades = exp(-seconds / self.FADES_S)
            self._freed = self._freed * fades + 1
            self._seconds = self._seconds * fades + seconds
        self._since = now if goes_on else None

    def gap_s(self, now: float) -> float | None:
        """Seconds from one to the next, what has passed since the last included; ``None`` before the first."""
        if not self._freed:
            return None
        return (self._seconds + (0.0 if self._since is None else now - self._since)) / self._freed
