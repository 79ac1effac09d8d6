"""Which experts cannot answer now, and why: noticed by what became of requests, and looked at again until they can.

An expert is in trouble from the first answer that fails through no fault of the caller's. It is out of it when it has
answered, or the engine has loaded what it needs, and nothing failed for a while. That while doubles when trouble comes
back, so that one that fails now and then stays in trouble instead of coming and going.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_router.engines.backoff import doubled
from expert_router.errors import EngineError, EngineTimeoutError, ExpertRouterError, NotReadyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from expert_router.records import RequestRecord
    from expert_router.serving.dispatcher import Dispatcher
    from expert_router.types import Expert

logger = logging.getLogger(__name__)

TROUBLE = {NotReadyError.code, EngineError.code, EngineTimeoutError.code}
CALM_S = 600.0
"""What comes so long after the last trouble is the first again."""


@dataclass(slots=True)
class _Trouble:
    why: str
    failed_at: float
    relapses: int = 0
    tries: int = 0
    over: bool = False

    @property
    def over_from(self) -> float:
        """What works earlier proves nothing."""
        return self.failed_at + doubled(self.relapses)

    @property
    def try_at(self) -> float:
        return self.failed_at + doubled(max(self.relapses, self.tries))


class Standing:
    """A ``RequestObserver`` of the ``dispatcher``'s. ``clock`` gives seconds and never goes back."""

    def __init__(self, dispatcher: Dispatcher, clock: Callable[[], float] = time.monotonic) -> None:
        self._dispatcher = dispatcher
        self._clock = clock
        self._troubles: dict[str, _Trouble] = {}
        self._news = asyncio.Event()

    def refused(self) -> dict[str, str]:
        """The experts that cannot answer, by name, with the reason."""
        return {name: trouble.why for name, trouble in sorted(self._current().items())}

    def failed(self, expert: str, why: str) -> None:
        now, trouble = self._clock(), self._troubles.get(expert)
        if trouble is None or trouble.over:
            relapses = trouble.relapses + 1 if trouble is not None and now - trouble.failed_at < CALM_S else 0
            self._troubles[expert] = _Trouble(why, now, relapses)
            logger.warning("expert refused", extra={"expert": expert, "reason": why})
        else:
            trouble.why, trouble.failed_at = why, now
        self._news.set()

    def worked(self, expert: str) -> None:
        trouble = self._troubles.get(expert)
        if trouble is not None and not trouble.over and self._clock() >= trouble.over_from:
            trouble.over = True
            logger.info("expert answers again", extra={"expert": expert})

    def observe(self, record: RequestRecord) -> None:
        for part in record.parts:
            if part.error in TROUBLE:
                self.failed(part.expert, f"its last answer failed ({part.error}); the log says more")
            elif part.generated is not None:
                self.worked(part.expert)

    def close(self) -> None:
        """Nothing is held."""

    async def look(self) -> None:
        """Try those in trouble, less and less often, until cancelled: nobody has to ask them."""
        while True:
            self._news.clear()
            ends = [trouble.try_at for trouble in self._current().values()]
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(ends) - self._clock()) if ends else None):
                    await self._news.wait()
            experts = self._dispatcher.experts  # of one version, whoever comes and goes meanwhile
            for name, trouble in self._current().items():
                if name in experts and trouble.try_at <= self._clock():
                    trouble.tries += 1
                    await self._try(name, experts[name])

    async def _try(self, name: str, expert: Expert) -> None:
        try:
            await self._dispatcher.engine.warm_up(expert)
        except ExpertRouterError as error:
            self.failed(name, error.message)
        except Exception:
            logger.exception("an expert could not be tried")
            self.failed(name, "it could not be tried; the log says more")
        else:
            self.worked(name)

    def _current(self) -> dict[str, _Trouble]:
        experts = self._dispatcher.experts
        return {name: trouble for name, trouble in self._troubles.items() if not trouble.over and name in experts}
