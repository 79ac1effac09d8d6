"""One line of the log for each request that was routed or refused: who answered, why, and what it took."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from expert_router.redaction import redact

if TYPE_CHECKING:
    from expert_router.records import RequestRecord

logger = logging.getLogger(__name__)


class LoggedRequests:
    """A ``ports.RequestObserver``. With ``questions`` the line has the question, redacted."""

    def __init__(self, *, questions: bool = False) -> None:
        self._questions = questions

    def observe(self, record: RequestRecord) -> None:
        logger.info("answered", extra=self._fields(record))

    def close(self) -> None:
        """Nothing is held."""

    def _fields(self, record: RequestRecord) -> dict[str, Any]:
        usages = [part.usage for part in record.parts if part.usage is not None]
        waits = [period.seconds for part in record.parts for period in part.queue]
        failed = {part.expert: part.error for part in record.parts if part.error}
        turns = record.request.user_turns
        return {
            "model": record.request.model,
            "decision": record.decision and record.decision.kind,
            "experts": [part.expert for part in record.parts],
            "adapters": {part.expert: part.served.adapter for part in record.parts},
            "outcome": record.outcome,
            "errors": failed or ({"": record.error} if record.error else {}),
            "cache": {part.expert: part.cache for part in record.parts if part.cache},
            "s": round(record.total_s, 4),
            "queue_s": round(sum(waits), 4),
            "first_token_s": record.first_token_s and round(record.first_token_s, 4),
            "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
            "completion_tokens": sum(usage.completion_tokens for usage in usages),
            **({"question": redact(turns[-1])} if self._questions and turns else {}),
        }
