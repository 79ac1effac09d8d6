"""What an expert is told before it reads the conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_router.types import GENERAL, Decision, Expert, Message

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BARE_BASE_MODEL = Expert(
    name=GENERAL,
    title="General (no expert)",
    description="The bare base model, without any expert's instructions.",
    instructions="",
)


def expert_messages(expert: Expert, conversation: Sequence[Message], others: Sequence[Expert] = ()) -> list[Message]:
    """The conversation with the expert's instructions in front, joined with the caller's own system message.

    ``others`` are experts that answer the same question beside this one; it is told to leave their part to them.
    """
    parts = [expert.instructions] if expert.instructions else []
    if others:
        titles = " and ".join(other.title for other in others)
        parts.append(f"The question has several parts. Answer only the part about {expert.title}; leave {titles} out.")
    parts += [message.content for message in conversation if message.role == "system"]
    system = [Message("system", "\n\n".join(parts))] if parts else []
    return system + [message for message in conversation if message.role != "system"]


def clarification(decision: Decision, titles: Mapping[str, str]) -> str:
    """The question back to the user when it could be any of several experts."""
    names = " or ".join(titles[name] for name in decision.experts)
    return f"I am not sure who should answer this: is it about {names}?"


def refusal(titles: Mapping[str, str]) -> str:
    """What is said when no expert fits and general answers are switched off."""
    return f"None of my experts covers this question. I can answer questions about {', '.join(titles.values())}."
