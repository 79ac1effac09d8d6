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

LAST_WORDS_S = 3
"""After the grace, for what the streams are told; who does not read it is broken off."""

logger = logging.getLogger(__name__)


class EndingServer(uvicorn.Server):
    """Gives what runs ``grace_s`` from the signal on; then the engine is closed, which ends streams with an error."""

    def __init__(self, app: FastAPI, grace_s: float) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=round(grace_s) + LAST_WORDS_S,
            server_header=False,
        )
        super().__init__(config)
        self._system: System = app.state.system
        self._grace_s = grace_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn: stops listening, closes idle connections, and waits for the others."""
        door = self._system.dispatcher.admission
        logger.info("ending", extra={"running": door.running, "waiting": door.waiting})
        closing = asyncio.create_task(self._close_engine())
        try:
            await super().shutdown(sockets)
        finally:
            closing.cancel()
            await asyncio.wait({closing})

    async def _close_engine(self) -> None:
        await asyncio.sleep(self._grace_s)
        door = self._system.dispatcher.admission
        logger.warning("the grace is over", extra={"running": door.running, "waiting": door.waiting})
        await self._system.dispatcher.engine.close()
