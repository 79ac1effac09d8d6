"""What an expert is told before it reads the conversation."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from expert_router.knowledge.grounding import RULES, grounded_question, without_citations
from expert_router.types import GENERAL, Decision, Expert, Message

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from expert_router.types import Found

BARE_BASE_MODEL = Expert(
    name=GENERAL,
    title="General (no expert)",
    description="The bare base model, without any expert's instructions.",
    instructions="",
)


def expert_messages(
    expert: Expert,
    conversation: Sequence[Message],
    others: Sequence[Expert] = (),
    found: Sequence[Found] = (),
) -> list[Message]:
    """The conversation with the expert's instructions in front, joined with the caller's own system message.

    ``others`` are experts that answer the same question beside this one; it is told to leave their part to them.
    ``found`` are the passages it answers the last turn from.
    """
    parts = [expert.instructions] if expert.instructions else []
    if found:
        parts.append(RULES)
    if others:
        titles = " and ".join(other.title for other in others)
        parts.append(f"The question has several parts. Answer only the part about {expert.title}; leave {titles} out.")
    parts += [message.content for message in conversation if message.role == "system"]
    system = [Message("system", "\n\n".join(parts))] if parts else []
    turns = [message for message in conversation if message.role != "system"]
    if expert.knowledge is not None:
        # Numbers in an earlier answer stood for passages that are gone; to others they may be code, like x[0].
        turns = [replace(m, content=without_citations(m.content)) if m.role == "assistant" else m for m in turns]
    if found:
        turns[-1] = Message("user", grounded_question(turns[-1].content, found))
    return system + turns


SOMETHING_ELSE = "something else"


def clarification(decision: Decision, titles: Mapping[str, str]) -> str:
    """The question back to the user when it could be any of several experts."""
    names = " or ".join(titles.get(name, SOMETHING_ELSE) for name in decision.choices)
    return f"I am not sure who should answer this: is it about {names}?"


def refusal(titles: Mapping[str, str]) -> str:
    """What is said when no expert fits and general answers are switched off."""
    return f"None of my experts covers this question. I can answer questions about {', '.join(titles.values())}."
