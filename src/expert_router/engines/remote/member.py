"""A server of the pool: what it does now, which adapters it holds, and whether it may be asked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from contextlib import aclosing
from typing import TYPE_CHECKING

from expert_router.engines.http_client import NO_HEADERS
from expert_router.engines.remote.breaker import Breaker
from expert_router.engines.remote.failures import AttemptError
from expert_router.engines.remote.names import is_adapter_name

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Mapping

    from expert_router.engines.remote.names import ServedModel
    from expert_router.engines.remote.upstream import Upstream
    from expert_router.types import Chunk

logger = logging.getLogger(__name__)

CHECKS_FAILED = 2
"""In a row: one may be lost on a busy server. Before any went well, one is enough."""
LONGEST_REST_S = 60.0
"""However long a server asks to be left alone."""


class Member:
    """``check_timeout_s`` bounds a check as a whole; ``clock`` counts seconds."""

    def __init__(self, upstream: Upstream, check_timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.upstream = upstream
        self.address = upstream.address
        self.breaker = Breaker(clock)
        self.outstanding = 0
        self.failures = 0
        self.listed = False
        """Whether ``models`` is what the server said itself."""
        self._clock = clock
        self._check_timeout_s = check_timeout_s
        self._models: set[str] = set()
        self._loading: dict[str, asyncio.Task[bool]] = {}
        self._loaded: set[str] = set()
        self._asked: Counter[str] = Counter()
        self._rest_until = 0.0
        self._checks_failed = 0
        self.last_error: str | None = None

    @property
    def down(self) -> bool:
        return self._checks_failed >= (CHECKS_FAILED if self.listed else 1)

    @property
    def resting(self) -> bool:
        return self._clock() < self._rest_until

    @property
    def state(self) -> str:
        """As its status has it, draining aside."""
        if self.down:
            return "down"
        return self.breaker.state if not self.breaker.closed else "resting" if self.resting else "up"

    @property
    def wait_s(self) -> float:
        """Until it may be asked, as far as it is not down."""
        return max(self.breaker.wait_s, self._rest_until - self._clock(), 0.0)

    @property
    def serves(self) -> str:
        """Its models, for an error text."""
        return self.upstream.failures.quoted(", ".join(sorted(self._models))) or "nothing"

    @property
    def admits(self) -> bool:
        return not self.down and not self.resting and self.breaker.admits

    def holds(self, model: ServedModel) -> bool:
        """Whether the model's weights are there, or on their way."""
        return model.adapter is None or model.name in self._models or self._asked[model.name] > 0

    def may_serve(self, model: ServedModel) -> bool:
        """False where it said that it has other bases."""
        return not self.listed or not self._models.isdisjoint((model.base, model.name))

    async def stream(
        self, model: ServedModel, body: bytes, headers: Mapping[str, str] = NO_HEADERS
    ) -> AsyncGenerator[Chunk]:
        """The answer to ``body``; where the model's adapter is missing it is loaded first. Raises ``AttemptError``."""
        probe, began, may_load = self.breaker.begin(), False, True
        self.outstanding += 1
        self._asked[model.name] += 1
        try:
            while True:
                try:
                    async with aclosing(self.upstream.stream(model.name, body, headers)) as chunks:
                        async for chunk in chunks:
                            if not began:
                                began = True
                                self._models.add(model.name)
                                self.breaker.answered(probe=probe)
                            yield chunk
                    break
                except AttemptError as error:
                    if not (error.missing and may_load):
                        raise
                    self._models.discard(model.name)  # as after a restart
                    may_load = False
                    if not await self.ensure(model):
                        raise
            self.breaker.succeeded()
        except AttemptError as error:
            self._note(error, probe=probe and not began)
            raise
        finally:
            self.breaker.left(probe=probe and not began)
            self.outstanding -= 1
            self._asked[model.name] -= 1

    async def ensure(self, model: ServedModel) -> bool:
        """Let it serve the model, whose adapter is loaded once however many ask; whether it does now.

        Raises ``AttemptError`` when the adapter cannot be loaded.
        """
        if model.name in self._models or model.path is None:
            return model.name in self._models
        task = self._loading.get(model.name)
        if task is None:
            task = asyncio.create_task(self.upstream.load(model.name, model.path))
            self._loading[model.name] = task
            task.add_done_callback(lambda done: self._end_loading(model.name, done))
        return await asyncio.shield(task)  # whoever leaves, the others wait on

    async def check(self) -> None:
        """Ask what it serves, and keep what came of it. Raises ``AttemptError``."""
        try:
            async with asyncio.timeout(self._check_timeout_s):
                names = await self.upstream.models()
        except TimeoutError:
            slow = self.upstream.failures.slow_check(self._check_timeout_s)
            self._note_check(slow)
            raise slow from None
        except AttemptError as error:
            self._note_check(error)
            raise
        self._models, self.listed = set(names), True
        self._note_check(None)

    async def forget(self, wanted: Collection[str]) -> None:
        """Unload adapters that were loaded from here and that no expert has any more, once nobody is answered by them.

        One that the server cannot forget now is tried again with the next check.
        """
        for name in [name for name in self._loaded if name not in wanted and not self._asked[name]]:
            try:
                await self.upstream.unload(name)
            except AttemptError as error:
                if not error.missing:
                    self.last_error = error.error.message
                    continue
            self._loaded.discard(name)
            self._models.discard(name)
            logger.info("adapter unloaded", extra={"upstream": self.address, "adapter": name})

    def status(self, *, draining: bool) -> dict[str, object]:
        return {
            "address": self.address,
            "state": "draining" if draining else self.state,
            "outstanding": self.outstanding,
            "adapters": sorted(filter(is_adapter_name, self._models)),
            "failures": self.failures,
            "last_error": self.last_error,
        }

    def close(self) -> None:
        for task in self._loading.values():
            task.cancel()
        self.upstream.close()

    def _end_loading(self, name: str, done: asyncio.Task[bool]) -> None:
        self._loading.pop(name, None)
        if not done.cancelled() and done.exception() is None and done.result():
            self._models.add(name)
            self._loaded.add(name)
            logger.info("adapter loaded", extra={"upstream": self.address, "adapter": name})

    def _note(self, error: AttemptError, *, probe: bool) -> None:
        if error.rest_s:
            self._rest_until = self._clock() + min(error.rest_s, LONGEST_REST_S)
        if not error.failure:
            self.breaker.answered(probe=probe)
            return
        self.failures += 1
        self.last_error = error.error.message
        was_closed = self.breaker.closed
        self.breaker.failed(probe=probe)
        if was_closed and not self.breaker.closed:
            logger.warning("upstream is left alone", extra={"upstream": self.address, "reason": self.last_error})

    def _note_check(self, error: AttemptError | None) -> None:
        was_down, failed_before = self.down, self._checks_failed > 0
        if error is not None and error.failure:
            self._checks_failed += 1
            self.last_error = error.error.message
        else:
            self._checks_failed = 0
        if self.down and not was_down:
            logger.warning("upstream is down", extra={"upstream": self.address, "reason": self.last_error})
        elif failed_before and not self._checks_failed:
            self.breaker.try_now()
            if was_down:
                logger.info("upstream is up", extra={"upstream": self.address})
