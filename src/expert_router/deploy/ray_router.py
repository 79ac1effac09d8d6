"""The placement policy as Ray Serve's request router: it runs in each gateway, beside the handle it chooses for.

What a replica holds it says itself, about once a second (``record_routing_stats``); what was sent to it since counts as
held too. Outstanding requests are this gateway's own and, as far as Ray's cache knows them, those of all.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import TYPE_CHECKING

from ray.serve.request_router import FIFOMixin, MultiplexMixin, RequestRouter

from expert_router.deploy.placement import Candidate, rank

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ray.serve.request_router import PendingRequest, ReplicaID, ReplicaResult, RunningReplica

STATS_PERIOD_S = 1.0
SENT_COUNTS_S = 5 * STATS_PERIOD_S
"""So long an expert that was sent to a replica counts as held there, whatever that says."""
QUEUE_LENGTH_WITHIN_S = 1.0
"""Ray passes over a replica that does not say in time how much it has to do. To load the expert elsewhere takes longer
than a second, which Ray's own 0.1 s do not know."""
HELD = "held"
AVOID = "avoid"


class AffineRouter(FIFOMixin, MultiplexMixin, RequestRouter):
    """The expert's key travels as Ray's model id, the replica that has just failed as the argument ``avoid``.

    The mixins hand a chosen replica to a request for the same key: Ray's own matching goes by a request id, which the
    runs of one answer share.
    """

    queue_len_response_deadline_s = QUEUE_LENGTH_WITHIN_S
    max_queue_len_response_deadline_s = QUEUE_LENGTH_WITHIN_S

    def initialize_state(self, *, overflow_at: int, affine: bool = True) -> None:
        """``affine`` is false where placement is to be by chance, to compare."""
        self._overflow_at = overflow_at
        self._affine = affine
        self._sent: dict[tuple[str, str], float] = {}
        self._running: Counter[tuple[ReplicaID, str]] = Counter()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """See ``placement.rank``. An expert that is held nowhere is one replica's from here on."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        avoid = pending_request.kwargs.get(AVOID)
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if len(replicas) > 1:
            replicas.pop(avoid, None)
        if not self._affine:
            return [[replica] for replica in random.sample(list(replicas.values()), len(replicas))]
        key = pending_request.metadata.multiplexed_model_id
        first, *others = rank(key, self._seen(replicas.values()), self._overflow_at)
        if not any(key in each.held for each in first):
            best = min(first, key=lambda each: each.outstanding)
            self._sent[best.name, key] = time.monotonic()
            first, others = [best], [[each for each in first if each is not best], *others]
        return [[replicas[each.name] for each in group] for group in (first, *others) if group]

    def on_request_routed(
        self,
        pending_request: PendingRequest,
        replica_id: ReplicaID,
        result: ReplicaResult,  # noqa: ARG002 - Ray's signature
    ) -> None:
        self._running[replica_id, pending_request.metadata.internal_request_id] += 1
        self._sent[replica_id.unique_id, pending_request.metadata.multiplexed_model_id] = time.monotonic()

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Also called for those that a replica did not take."""
        self._running[replica_id, internal_request_id] -= 1
        if self._running[replica_id, internal_request_id] <= 0:
            del self._running[replica_id, internal_request_id]

    def _seen(self, replicas: Iterable[RunningReplica]) -> list[Candidate]:
        earliest = time.monotonic() - SENT_COUNTS_S
        self._sent = {pair: at for pair, at in self._sent.items() if at > earliest}
        own = Counter[str]()
        for (replica_id, _), count in self._running.items():
            own[replica_id.unique_id] += count
        seen = []
        for replica in replicas:
            name = replica.replica_id.unique_id
            sent = {key for at, key in self._sent if at == name}
            everyones = self.replica_queue_len_cache.get(replica.replica_id) or 0
            held = frozenset(sent | set(replica.routing_stats.get(HELD, ())))
            seen.append(Candidate(name, held, max(own[name], everyones)))
        return seen
