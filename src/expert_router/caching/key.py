"""What a kept answer is found by: a hash over everything that shapes it.

What is not told apart here is given the same answer. Hence all of a message's and of the parameters' fields go in,
whichever they are, and only what is known to shape nothing is left out.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_router.types import GenerationParams, Message

SHAPE_NOTHING = {"cache", "ticket", "trace"}
VERSION = 1
"""Raise it when what is kept is written otherwise."""


def answer_key(
    *,
    namespace: str,
    client: str,
    engine: str,
    identity: str,
    expert: str,
    messages: Sequence[Message],
    params: GenerationParams,
) -> str:
    """A SHA-256 in hexadecimal digits. ``identity`` is the engine's for the expert; an empty ``client`` is any.

    The messages hold the expert's instructions and the passages that it reads, so that an edit of either tells itself.
    The day is in it because chat templates may say it.
    """
    asked = {each.name: getattr(params, each.name) for each in fields(params) if each.name not in SHAPE_NOTHING}
    said = [asdict(message) for message in messages]
    parts = [VERSION, namespace, client, engine, identity, expert, time.strftime("%Y-%m-%d"), said, asked]
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    # Half a surrogate pair is let through: written as JSON's escapes, two of them would be the character they spell.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Keeping:
    """Which answers are kept, and for whom.

    ``namespace`` tells a system from others that use the same store. With ``sampled`` also answers that chance had a
    part in are given again, with ``per_client`` each client's to itself alone.
    """

    namespace: str = ""
    sampled: bool = False
    per_client: bool = False

    def allows(self, params: GenerationParams) -> bool:
        """Whether an answer may be kept, or be one that was."""
        return params.cache != "bypass" and (self.sampled or params.temperature == 0)

    def whose(self, client: str) -> str:
        """Whose answers a client is given: an empty name is everybody's."""
        return client if self.per_client else ""


DEFAULT = Keeping()
