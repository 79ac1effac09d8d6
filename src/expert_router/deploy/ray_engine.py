"""The engine deployment as an engine: what a gateway's dispatcher streams from, over Ray Serve's handle.

A replica that dies or says nothing any more is noticed. Before any text the request is asked of another replica, once;
after that the answer ends with an error. It never waits for ever.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from expert_router.deploy.placement import placement_key
from expert_router.engines.slots import SlotCounters
from expert_router.errors import EngineError, ExpertRouterError, NotReadyError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from expert_router.deploy.ray_replica import Pieces
    from expert_router.ports import Engine
    from expert_router.types import Chunk, Expert, GenerationParams, Message, Served

logger = logging.getLogger(__name__)

ATTEMPTS = 2
SPREAD_WITHIN_S, SPREAD_POLL_S = 60.0, 0.2


class ReplicaLostError(EngineError):
    """The replica died, or was silent for too long. ``replica`` is its name, as far as it has told it."""

    def __init__(self, message: str, replica: str = "") -> None:
        super().__init__(message)
        self.replica = replica


class RayEngine:
    """``handle`` is the engine deployment's; ``described`` an engine like the replicas', of which nothing is loaded.

    ``silence_s`` is the longest silence between two signs of life of a replica, ``replicas`` how many there are at
    first.
    """

    name = "ray"

    def __init__(self, handle: Any, described: Engine, silence_s: float, replicas: int = 1) -> None:
        self._handle = handle
        self._described = described
        self._silence_s = silence_s
        self._awaited = replicas
        self._slots = SlotCounters()
        self._replicas: list[dict[str, object]] = []
        self._asking: asyncio.Task[None] | None = None
        self.retried = 0

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        """See ``ports.Engine``; what goes wrong in a replica is raised as it was there."""
        params = replace(params, ticket=None)  # the door is the gateway's
        said, avoid = False, ""
        with self._slots.slot():
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    async with aclosing(self._from_replica(avoid, expert, messages, params)) as chunks:
                        async for chunk in chunks:
                            said = said or bool(chunk.text)
                            yield chunk
                except ReplicaLostError as lost:
                    if said or attempt == ATTEMPTS:
                        raise
                    avoid = lost.replica
                    self.retried += 1
                    logger.warning("asked of another replica", extra={"expert": expert.name, "reason": lost.message})
                else:
                    return

    def served(self, expert: Expert) -> Served:
        return self._described.served(expert)

    def identity(self, expert: Expert) -> str | None:
        return self._described.identity(expert)

    async def warm_up(self, expert: Expert) -> None:
        """Load it where its first question will go."""
        await self._replicas_there()
        key = self._key(expert)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                error: ExpertRouterError | None = await self._handle.options(
                    method_name="warm_up", multiplexed_model_id=key
                ).remote(key, expert)
            except RayTaskError:
                raise
            except (RayError, RayServeException) as lost:
                if attempt == ATTEMPTS:
                    raise NotReadyError("The engine's replica died while it loaded: see its log.") from lost
                continue
            if error is not None:
                raise error
            return

    def status(self) -> dict[str, object]:
        """``replicas`` is what they said when they were last asked, which this does anew, for the next time."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_replicas())
        return {
            "engine": self._described.name,
            **asdict(self._slots),
            "retried": self.retried,
            "replicas": self._replicas,
        }

    async def close(self) -> None:
        """The replicas go on: they are their deployment's."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})
        await self._described.close()

    def _key(self, expert: Expert) -> str:
        return placement_key(expert, self.served(expert))

    async def _from_replica(
        self, avoid: str, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        """The answer of one replica. Raises ``ReplicaLostError`` beside what the replica's engine raises."""
        key, replica, whole, ended = self._key(expert), "", False, False
        handle = self._handle.options(method_name="stream", stream=True, multiplexed_model_id=key)
        response = handle.remote(key, expert, tuple(messages), params, avoid=avoid)
        try:
            while (pieces := await self._next(response, replica)) is not None:
                replica = pieces.replica
                for chunk in pieces.chunks:
                    whole = chunk.finish_reason is not None
                    yield chunk
                if pieces.error is not None:
                    raise pieces.error
            ended = True
            if not whole:
                raise ReplicaLostError("The engine's replica ended the answer before it was whole.", replica)
        finally:
            if not ended:
                response.cancel()

    async def _next(self, response: Any, replica: str) -> Pieces | None:
        """``None`` at the end. Raises ``NotReadyError`` when no replica takes the question in time."""
        try:
            async with asyncio.timeout(self._silence_s):
                pieces: Pieces = await anext(response)
        except StopAsyncIteration:
            return None
        except TimeoutError as error:
            if not replica:
                raise NotReadyError(f"No engine took the question within {self._silence_s:g} s: try again.") from error
            raise ReplicaLostError(
                f"The engine's replica has said nothing for {self._silence_s:g} s.", replica
            ) from error
        except RayTaskError:
            raise
        except (RayError, RayServeException) as error:
            raise ReplicaLostError("The engine's replica died while it answered.", replica) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise ReplicaLostError("The engine's replica was stopped while it answered.", replica) from error
        return pieces

    async def _replicas_there(self) -> None:
        """Wait for those that are to be there at first, a while at most: the first one would have all experts."""
        give_up = time.monotonic() + SPREAD_WITHIN_S
        while self._awaited > 1 and time.monotonic() < give_up:
            await self._ask_replicas()
            if len(self._replicas) >= self._awaited:
                break
            await asyncio.sleep(SPREAD_POLL_S)
        self._awaited = 1

    async def _ask_replicas(self) -> None:
        try:
            async with asyncio.timeout(self._silence_s):
                said = await self._handle.broadcast("status").results_async(return_exceptions=True)
            self._replicas = [each for each in said if not isinstance(each, BaseException)]
        except (RayError, RayServeException, TimeoutError) as error:
            logger.warning("the replicas' status is not known", extra={"reason": str(error)})
