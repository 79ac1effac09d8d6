"""How long a request may take in all: also one whose client does not read what it asked for."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from expert_router.api.access import of_api
from expert_router.api.errors import error_response
from expert_router.errors import RequestTimeoutError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


logger = logging.getLogger(__name__)


class TimeLimit:
    """Of the API's requests, as an open page asks for events for as long as it is open.

    One whose answer has begun is broken off: a client must not take what there is for the whole.
    """

    def __init__(self, app: ASGIApp, seconds: float | None) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._seconds is None or scope["type"] != "http" or not of_api(scope):
            await self._app(scope, receive, send)
            return
        begun = False

        async def noting_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            async with asyncio.timeout(self._seconds) as limit:
                await self._app(scope, receive, noting_send)
        except TimeoutError:
            if not limit.expired():
                raise
            error = RequestTimeoutError(f"The request took longer than {self._seconds:g} s.")
            logger.warning("request broken off", extra={"reason": error.message})
            if not begun:
                await error_response(error)(scope, receive, send)
