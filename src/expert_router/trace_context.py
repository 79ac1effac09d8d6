"""Where a request stands in a trace (W3C Trace Context, https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_STATE = re.compile(r"[ -~]{1,512}")
SAMPLED = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Ids are lower-case hexadecimal digits, 32 and 16. ``parent_id`` is the span that ``span_id`` is below.

    Unless ``recorded`` no span of ours is told to anybody, and what the caller sent is handed on as it came.
    """

    trace_id: str
    span_id: str
    parent_id: str | None = None
    flags: int = SAMPLED
    state: str = ""
    recorded: bool = True

    @classmethod
    def of_request(cls, headers: Mapping[str, str], *, recorded: bool) -> Self | None:
        """The request's own span, below its caller's, who may not want it ``recorded``; ``None`` without any trace."""
        parent = _PARENT.fullmatch(headers.get("traceparent", "").strip())
        if parent is None:
            return cls(secrets.token_hex(16), secrets.token_hex(8)) if recorded else None
        trace_id, span_id, flags = parent[1], parent[2], int(parent[3], 16)
        state = headers.get("tracestate", "").strip()
        state = state if _STATE.fullmatch(state) else ""
        recorded = recorded and bool(flags & SAMPLED)
        caller = cls(trace_id, span_id, None, flags, state, recorded)
        return caller.child()

    def child(self) -> Self:
        """A span below this one, where spans are recorded."""
        return replace(self, span_id=secrets.token_hex(8), parent_id=self.span_id) if self.recorded else self

    def headers(self) -> dict[str, str]:
        """For whoever goes on with the request."""
        parent = f"00-{self.trace_id}-{self.span_id}-{self.flags & SAMPLED:02x}"
        return {"traceparent": parent, **({"tracestate": self.state} if self.state else {})}
