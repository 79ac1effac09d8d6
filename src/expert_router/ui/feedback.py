"""What a person may say of who answered: that it was right, that it was wrong, and then who should have answered.

A verdict is ``RIGHT``, ``WRONG`` or the name of who should have answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_router.types import GENERAL

if TYPE_CHECKING:
    from expert_router.types import Rating
    from expert_router.ui.catalogue import Catalogue
    from expert_router.ui.conversation import Exchange

RIGHT, WRONG = "is right", "is wrong"
_PREFIX = "feedback:"
"""Begins the value of a choice that holds a verdict; any other is an expert to ask."""


def choices(exchange: Exchange, catalogue: Catalogue) -> list[dict[str, str]]:
    """Buttons below the last answer; none where the server keeps no decisions, or all is said."""
    if exchange.decision_id is None or exchange.verdict not in {"", WRONG}:
        return []
    if not exchange.verdict:
        return [_choice(RIGHT, "👍 Right choice"), _choice(WRONG, "👎 Someone else should have answered")]
    answered = exchange.routed.experts if exchange.routed else ()
    return [_choice(name, catalogue.title(name)) for name in (*catalogue.experts, GENERAL) if (name,) != answered]


def verdict_in(value: str) -> str | None:
    return value.removeprefix(_PREFIX) if value.startswith(_PREFIX) else None


def to_send(verdict: str) -> tuple[Rating, str]:
    """The rating, and who should have answered, empty when nobody was named."""
    return ("up" if verdict == RIGHT else "down"), ("" if verdict in {RIGHT, WRONG} else verdict)


def said(verdict: str, catalogue: Catalogue) -> str:
    """That it was taken down, and what else may be said."""
    if verdict == RIGHT:
        return "Noted: the right choice."
    if verdict == WRONG:
        return "Noted: not the right choice. Who should have answered?"
    return f"Noted: {catalogue.title(verdict)} should have answered."


def _choice(verdict: str, label: str) -> dict[str, str]:
    return {"value": f"{_PREFIX}{verdict}", "label": label}
