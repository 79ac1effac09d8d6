"""How a server ends: nobody new comes in, who is in is answered or told why not, and only then the process goes."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    import socket

    from fastapi import FastAPI

    from expert_router.api.deps import System
    from expert_router.serving.dispatcher import Dispatcher

LAST_WORDS_S = 3
"""After the grace, for what the streams are told; who does not read it is broken off."""

logger = logging.getLogger(__name__)


class EndingServer(uvicorn.Server):
    """Gives what runs ``grace_s`` from the signal on; then the engine is closed, which ends streams with an error.

    An application without a system, as the page alone, has streams that are broken off then.
    """

    def __init__(self, config: uvicorn.Config, grace_s: float) -> None:
        app: FastAPI = config.app  # type: ignore[assignment]  # what is run here
        self._system: System | None = getattr(app.state, "system", None)
        self._grace_s = grace_s
        config.timeout_graceful_shutdown = round(grace_s) + (0 if self._system is None else LAST_WORDS_S)
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn: stops listening, closes idle connections, and waits for the others."""
        if self._system is None:
            await super().shutdown(sockets)
            return
        door = self._system.dispatcher.admission
        logger.info("ending", extra={"running": door.running, "waiting": door.waiting})
        closing = asyncio.create_task(self._close_engine(self._system.dispatcher))
        try:
            await super().shutdown(sockets)
        finally:
            closing.cancel()
            await asyncio.wait({closing})

    async def _close_engine(self, dispatcher: Dispatcher) -> None:
        await asyncio.sleep(self._grace_s)
        door = dispatcher.admission
        logger.warning("the grace is over", extra={"running": door.running, "waiting": door.waiting})
        await dispatcher.engine.close()
