"""Which requests may have an answer that is kept, told before anything is done for them: those that were let in lately.

To know for certain a question must be routed and what it reads be looked up, since both shape the answer: when many are
refused, that takes more of the processors than it gives.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from expert_router.caching.key import DEFAULT, Keeping

if TYPE_CHECKING:
    from expert_router.types import ChatRequest

LATELY = 10_000
"""So many requests; the least recent go."""


class AskedBefore:
    """Digests only: where two are alike one request more is routed before it is refused."""

    def __init__(self, keeping: Keeping = DEFAULT) -> None:
        self._keeping = keeping
        self._digests: OrderedDict[int, None] = OrderedDict()

    def may_be_kept(self, request: ChatRequest) -> bool:
        wanted = request.params.cache == "use" and self._keeping.allows(request.params)
        return wanted and _digest(request) in self._digests

    def note(self, request: ChatRequest) -> None:
        digest = _digest(request)
        self._digests[digest] = None
        self._digests.move_to_end(digest)
        if len(self._digests) > LATELY:
            self._digests.popitem(last=False)


def _digest(request: ChatRequest) -> int:
    params = request.params
    return hash((request.messages, request.model, params.max_tokens, params.seed, params.stop))
