"""Server-sent events as they are read (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

from dataclasses import dataclass

MAX_EVENT_BYTES = 1024**2
TOO_LONG = f"an event is longer than {MAX_EVENT_BYTES} bytes"


@dataclass(frozen=True, slots=True)
class Event:
    kind: bytes
    """What the server calls it; empty for a message."""
    data: bytes

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "replace")


class EventParser:
    """Pieces of a stream in, events out; ids and times to come back are left out."""

    def __init__(self) -> None:
        self._rest = b""
        self._kind = b""
        self._data: list[bytes] = []
        self._bytes = 0

    def feed(self, piece: bytes) -> list[Event]:
        """The events that this piece completes. Raises ``ValueError`` when one is longer than ``MAX_EVENT_BYTES``."""
        lines = (self._rest + piece).splitlines(keepends=True)
        self._rest = b"" if not lines or lines[-1].endswith(b"\n") else lines.pop()  # a \r may be half of \r\n
        events = []
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError(TOO_LONG)
        for line in lines:
            name, _, value = line.rstrip(b"\r\n").partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
                self._bytes += len(line)
                if self._bytes > MAX_EVENT_BYTES:
                    raise ValueError(TOO_LONG)
            elif name == b"event":
                self._kind = value.removeprefix(b" ")
            elif not name and line[:1] != b":":
                if self._data:
                    events.append(Event(self._kind, b"\n".join(self._data)))
                self._kind, self._data, self._bytes = b"", [], 0
        return events
