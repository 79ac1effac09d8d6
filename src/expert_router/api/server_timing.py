"""The ``server-timing`` header (https://www.w3.org/TR/server-timing/): where an answer's time went, in milliseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expert_router.types import Timings


def server_timing(timings: Timings) -> dict[str, str]:
    """As headers; a step that was not reached, or not yet, is left out."""
    steps = {
        "route": timings.route_s,
        "queue": timings.queue_s,
        "retrieve": timings.retrieve_s,
        "first": timings.first_token_s,
        "total": timings.total_s,
    }
    reached = [f"{name};dur={seconds * 1000:.1f}" for name, seconds in steps.items() if seconds is not None]
    return {"server-timing": ", ".join(reached)}
