"""Several servers that answer alike: which of them is asked, and who is asked when it fails (decision 18)."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from expert_router.engines.backoff import jittered
from expert_router.engines.http_client import NO_HEADERS
from expert_router.engines.remote.breaker import RetryBudget
from expert_router.engines.remote.failures import AttemptError
from expert_router.engines.remote.member import Member
from expert_router.errors import ExpertRouterError, NotReadyError, OverloadedError, UpstreamsDownError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence

    from expert_router.engines.remote.names import ServedModel
    from expert_router.engines.remote.upstream import Upstream
    from expert_router.types import Chunk

logger = logging.getLogger(__name__)

LONGER_QUEUE = 8
"""A server that holds the adapter may have so many requests more than the shortest queue: they delay a first token by
less than it takes to load an adapter (decision 18)."""
BROKEN_OFF = 2
"""So many servers may break off over one request: it may be the request that breaks them."""
CHECK_INTERVAL_S = 5.0
CHECK_TIMEOUT_S = 5.0
LEAST_RETRY_AFTER_S = 1.0


class UpstreamPool:
    """``upstreams`` have addresses of their own. Its first request starts the checks.

    ``check_interval_s`` lies between two checks of a server. ``draining`` says which addresses get no
    new requests, ``wanted`` the names that experts have now: other adapters that were loaded from here are unloaded.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        *,
        check_interval_s: float = CHECK_INTERVAL_S,
        draining: Callable[[], Collection[str]] = frozenset,
        wanted: Callable[[], Collection[str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._members = [Member(upstream, CHECK_TIMEOUT_S, clock) for upstream in upstreams]
        self._check_interval_s = check_interval_s
        self._draining = draining
        self._wanted = wanted
        self._budget = RetryBudget()
        self._watching: list[asyncio.Task[None]] = []
        self._base: ServedModel | None = None
        """What was warmed up first: it has to be served."""
        self._retries = 0

    async def stream(
        self, model: ServedModel, body: bytes, headers: Mapping[str, str] = NO_HEADERS
    ) -> AsyncGenerator[Chunk]:
        """The answer to ``body`` by one of the servers that may be asked; by another where one fails before it began.

        Raises ``UpstreamsDownError`` at once when none may be asked, ``OverloadedError`` when all are full, or what the
        last one said.
        """
        self._watch()
        self._budget.earn()
        tried: list[Member] = []
        broken_off, failed = 0, None
        while True:
            member = self._next(model, tried, failed)
            tried.append(member)
            began = False
            try:
                async with aclosing(member.stream(model, body, headers)) as chunks:
                    async for chunk in chunks:
                        began = True
                        yield chunk
            except AttemptError as error:
                broken_off += error.broke_off
                if began or not error.repeatable or broken_off >= BROKEN_OFF:
                    raise error.error from error.__cause__
                failed = error
            else:
                return

    async def warm_up(self, model: ServedModel) -> None:
        """Check that the model is served, by at least one server, and load its adapter where its requests will go.

        Raises ``NotReadyError`` with what is missing.
        """
        self._watch()
        if model.adapter is None:
            self._base = self._base or model
        checks = await asyncio.gather(*map(_failed_check, self._members))
        reached = [member for member, error in zip(self._members, checks, strict=True) if error is None]
        if not reached:
            raise NotReadyError(" ".join(error.error.message for error in checks if error))
        draining = self._draining()
        staying = [member for member in reached if member.address not in draining] or reached
        home = choose([member for member in staying if member.may_serve(model)] or staying, model)
        try:
            served = await home.ensure(model)
        except AttemptError as failed:
            raise NotReadyError(failed.error.message) from failed
        if not served:
            raise NotReadyError(
                f"{home.address} does not serve {model.name!r}; it serves {home.serves}. {model.how_to_serve}"
            )

    async def check(self) -> bool:
        """Whether one of the servers says now what it serves."""
        return None in await asyncio.gather(*map(_failed_check, self._members))

    def status(self) -> dict[str, object]:
        """``unusable`` says why no question can be answered now, or is ``None``."""
        draining = self._draining()
        members = [member.status(draining=member.address in draining) for member in self._members]
        return {"upstreams": members, "retries": self._retries, "unusable": self._unusable(draining)}

    async def close(self) -> None:
        """Close all connections; what still runs breaks off."""
        watching = [task for task in self._watching if not task.done()]
        for task in watching:
            task.cancel()
        for member in self._members:
            member.close()
        await asyncio.gather(*watching, return_exceptions=True)

    def _next(self, model: ServedModel, tried: Sequence[Member], failed: AttemptError | None) -> Member:
        """Who is asked now, or an error: nobody may be, or retries would add too much to what fails already."""
        draining = self._draining()
        admitted = [m for m in self._members if m.admits and m not in tried and m.address not in draining]
        able = [m for m in admitted if m.may_serve(model)] or admitted
        if failed is None:
            due = [m for m in able if not m.breaker.closed]  # or one that is not needed would never come back
            if able:
                return choose(due or able, model)
        else:
            closed = [m for m in able if m.breaker.closed]
            if closed and self._budget.take():
                self._retries += 1
                return choose(closed, model)
            if closed or not failed.failure or len(self._members) == 1:
                raise failed.error from failed.__cause__
        raise self._refusal(draining)

    def _refusal(self, draining: Collection[str]) -> OverloadedError | UpstreamsDownError:
        taken = [m for m in self._members if m.address not in draining]
        waits = [self._check_interval_s if m.down else m.wait_s for m in taken]
        retry_after_s = max(LEAST_RETRY_AFTER_S, min(waits, default=self._check_interval_s))
        if any(m.state == "resting" for m in taken):
            return OverloadedError("Every server that is up takes no more requests now.", retry_after_s=retry_after_s)
        return UpstreamsDownError(self._why_none(draining), retry_after_s=retry_after_s)

    def _unusable(self, draining: Collection[str]) -> str | None:
        usable = [m for m in self._members if (m.admits or m.resting) and m.address not in draining]
        if not usable:
            return self._why_none(draining)
        if self._base is None or any(m.may_serve(self._base) for m in usable):
            return None
        return f"No server that is up serves {self._base.name!r}."

    def _why_none(self, draining: Collection[str]) -> str:
        states = [f"{m.address} is {'draining' if m.address in draining else m.state}" for m in self._members]
        said = [m.last_error for m in self._members if m.last_error and m.address not in draining]
        return f"No server can be asked now: {', '.join(states)}." + (f" {said[-1]}" if said else "")

    def _watch(self) -> None:
        if all(task.done() for task in self._watching):  # none yet, or those of a loop that is over
            self._watching = [asyncio.create_task(self._watch_one(member)) for member in self._members]

    async def _watch_one(self, member: Member) -> None:
        while True:
            await asyncio.sleep(jittered(self._check_interval_s))
            if await _failed_check(member) is None and self._wanted is not None:
                try:
                    await member.forget(await asyncio.to_thread(self._wanted))
                except (ExpertRouterError, OSError) as error:
                    logger.warning("adapters are not unloaded", extra={"reason": str(error)})


async def _failed_check(member: Member) -> AttemptError | None:
    try:
        await member.check()
    except AttemptError as error:
        return error
    return None


def choose(members: Sequence[Member], model: ServedModel) -> Member:
    """Who of those that may be asked is: one that holds the adapter and has the fewest requests.

    Unless that is more than ``LONGER_QUEUE`` above the shortest queue. Those that are equal are told apart by a hash
    of model and address (rendezvous hashing), so that a model stays with a server whose caches are warm, and only those
    of a server that goes move.
    """
    shortest = min(member.outstanding for member in members)
    near = [m for m in members if m.holds(model) and m.outstanding <= shortest + LONGER_QUEUE] or members
    return min(near, key=lambda member: (member.outstanding, rendezvous(model.name, member.address)))


def rendezvous(name: str, address: str) -> bytes:
    return hashlib.blake2b(f"{name}\n{address}".encode(), digest_size=8).digest()
