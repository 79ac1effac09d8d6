"""Conversations of which each turn has its experts: JSON lines, written to calibrate and to measure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_router.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

THANKS = "thanks"
"""The kind of a turn that asks nothing."""


@dataclass(frozen=True, slots=True)
class Turn:
    """``kind``: start, follow-up, change, return or thanks."""

    said: str
    experts: frozenset[str]
    kind: str


def read_dialogues(path: Path) -> list[list[Turn]]:
    """JSON lines, each with ``turns`` of ``user``, ``experts`` and ``kind``. Raises ``DataError`` with the line."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    dialogues = []
    for number, line in enumerate(lines, start=1):
        try:
            turns = json.loads(line)["turns"]
            dialogues.append([Turn(str(t["user"]), frozenset(t["experts"]), str(t["kind"])) for t in turns])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not a dialogue: {error!r}") from error
    if not any(dialogues):
        raise DataError(f"{path} has no dialogues.")
    return dialogues
