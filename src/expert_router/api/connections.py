"""What a connection may take before there is a request: bytes of a head, and time.

uvicorn reads heads of any size for any time, and counts connections only once a request has come. Who sends a byte now
and then ("slow loris") would hold a connection, and in the end all of them. Here each has a time for its head and one
for its body, from when the server is ready to read them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastapi.responses import JSONResponse
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from expert_router.api.errors import error_object
from expert_router.errors import BusyError, HeadTooLargeError, SlowRequestError

if TYPE_CHECKING:
    import asyncio

    from expert_router.errors import ExpertRouterError
    from expert_router.settings import ServerSettings

logger = logging.getLogger(__name__)

FIELD_BYTES = 4
"""Of a header beside its name and value: colon, space and the line's end."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    max_connections: int
    max_head_bytes: int
    max_headers: int
    head_timeout_s: float
    body_timeout_s: float


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 as uvicorn speaks it, within ``limits``."""

    limits: ClassVar[ConnectionLimits]

    _timer: asyncio.TimerHandle | None = None
    _in_head = True
    """Or between two requests: what comes next is of a head."""
    _head_bytes = 0
    _completed = False
    _refused: ExpertRouterError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(BusyError("The server has as many connections as it may. Try again later."))
        else:
            self._start_timer(self.limits.head_timeout_s, "head")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused is not None:  # what it still sends is of no interest
            return
        if self._in_head and self._timer is None and not self._answering:  # the connection's next request
            self._start_timer(self.limits.head_timeout_s, "head")
        self._completed = False
        super().data_received(data)
        if self._in_head and not self._completed and self._refused is None:  # a line is parsed when it ends
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.max_head_bytes:
                self._refuse(self._too_large())

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > self.limits.max_headers:
            self._refused = HeadTooLargeError(f"The request has more than {self.limits.max_headers} headers.")
            raise self._refused

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + FIELD_BYTES for name, value in self.headers)
        if size > self.limits.max_head_bytes:
            self._refused = self._too_large()
            raise self._refused
        self._in_head = False
        self._start_timer(self.limits.body_timeout_s, "body")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._stop_timer()
        self._in_head, self._completed, self._head_bytes = True, True, 0

    def send_400_response(self, msg: str) -> None:
        """What the parser could not read, or was told not to."""
        if self._refused is None:
            super().send_400_response(msg)
        else:
            self._refuse(self._refused)

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start_timer(self, seconds: float, part: str) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._too_slow, part, seconds)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self, part: str, seconds: float) -> None:
        error = SlowRequestError(f"The request's {part} did not come within {seconds:g} s.")
        self._refuse(error, told=not self._in_head or self._head_bytes > 0)  # browsers open connections ahead

    def _too_large(self) -> HeadTooLargeError:
        return HeadTooLargeError(f"The request's head is larger than {self.limits.max_head_bytes} bytes.")

    def _refuse(self, error: ExpertRouterError, *, told: bool = True) -> None:
        """Close, and say why, unless that would be taken for another request's answer, or stand in the midst of one."""
        self._stop_timer()
        self._refused = error
        logger.info("connection refused", extra={"reason": error.message})
        free = not self._answering if self._in_head else not self.cycle.response_started
        if told and free and not self.pipeline:
            answer = JSONResponse(error_object(error), error.status, {"connection": "close"})
            fields = [name + b": " + value + b"\r\n" for name, value in answer.raw_headers]
            self.transport.write(b"".join([STATUS_LINE[error.status], *fields, b"\r\n", bytes(answer.body)]))
        if self._answering:  # it sees that its client left
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


def limited(settings: ServerSettings) -> type[LimitedProtocol]:
    """The protocol within a server's limits."""

    class Protocol(LimitedProtocol):
        limits = ConnectionLimits(
            settings.max_connections,
            settings.max_head_bytes,
            settings.max_headers,
            settings.head_timeout_s,
            settings.body_timeout_s,
        )

    return Protocol
