"""Who is next: clients in turn, and within a client its experts in turn.

Fair queueing by round robin (Nagle, RFC 970, section 5): each client has a queue of its own, and each turn takes one
from the next. However much one client asks, it delays another's first request by one turn.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


@dataclass(frozen=True, eq=False, slots=True)
class Place:
    """One run that waits; ``turn`` is set when it is its turn."""

    client: str
    expert: str
    turn: asyncio.Future[None]


class FairQueue:
    """Every operation takes the same time however many wait. A client that comes back goes to the end of the round."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, OrderedDict[str, OrderedDict[Place, None]]] = OrderedDict()
        self._counts: dict[str, int] = {}
        self._size = 0
        self.expected = 0
        """How many have not joined yet, and will."""

    def __len__(self) -> int:
        return self._size

    def of(self, client: str) -> int:
        """How many of the client's wait or are expected."""
        return self._counts.get(client, 0)

    def ahead_of(self, client: str) -> int:
        """At most so many are served before one that joins now, if those that are expected have joined."""
        own = self.of(client)
        others = len(self._counts) - bool(own)
        return min(self._size + self.expected, own + others * (own + 1))

    def expect(self, client: str) -> None:
        """One of the client's will join; ``arrived`` undoes it."""
        self.expected += 1
        self._count(client, 1)

    def arrived(self, client: str) -> None:
        self.expected -= 1
        self._count(client, -1)

    def push(self, place: Place) -> None:
        experts = self._clients.setdefault(place.client, OrderedDict())
        experts.setdefault(place.expert, OrderedDict())[place] = None
        self._count(place.client, 1)
        self._size += 1

    def pop(self) -> Place:
        """Whose turn it is. Raises ``StopIteration`` when nobody waits."""
        client = next(iter(self._clients))
        experts = self._clients[client]
        expert = next(iter(experts))
        place = next(iter(experts[expert]))
        self._clients.move_to_end(client)
        experts.move_to_end(expert)
        self.remove(place)
        return place

    def remove(self, place: Place) -> None:
        """Raises ``KeyError`` when it does not wait here."""
        experts = self._clients[place.client]
        del experts[place.expert][place]
        if not experts[place.expert]:
            del experts[place.expert]
        if not experts:
            del self._clients[place.client]
        self._count(place.client, -1)
        self._size -= 1

    def _count(self, client: str, change: int) -> None:
        self._counts[client] = self.of(client) + change
        if not self._counts[client]:
            del self._counts[client]
