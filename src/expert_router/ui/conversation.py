"""What the page remembers of one conversation: values that change only by being replaced."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, assert_never

from expert_router.types import AUTO, Message, Sources
from expert_router.ui.client import Done, Event, Failed, Routed, Section, Text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from expert_router.types import Found

Progress = Literal["asked", "answering", "done", "stopped", "failed"]

_CITATION = re.compile(r"\[(\d{1,2})\]")


@dataclass(frozen=True, slots=True)
class Part:
    """What one expert wrote, and what it was given to read: ``[1]`` in ``text`` names the first of ``found``."""

    expert: str = ""
    found: tuple[Found, ...] = ()
    text: str = ""

    @property
    def cited(self) -> frozenset[int]:
        """The numbers that the text names and that there are."""
        return frozenset(map(int, _CITATION.findall(self.text))).intersection(range(1, len(self.found) + 1))


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and what came of it.

    ``model`` is what the person chose; ``routed`` is who answers; ``parts`` is the answer, one part for each expert.
    ``verdict`` is what the person said of who answered, once that was taken down (``ui.feedback``).
    """

    question: str
    model: str = AUTO
    progress: Progress = "asked"
    routed: Routed | None = None
    parts: tuple[Part, ...] = ()
    done: Done | None = None
    problem: str = ""
    verdict: str = ""

    @property
    def decision_id(self) -> str | None:
        """What feedback names; ``None`` where the server keeps no decisions, or nobody was chosen yet."""
        decided = self.routed and self.routed.decision
        return decided.id if decided and decided.kind != "clarify" and not self.busy else None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)

    @property
    def busy(self) -> bool:
        return self.progress in {"asked", "answering"}

    def after(self, event: Event) -> Exchange:
        match event:
            case Routed():
                return replace(self, progress="answering", routed=event)
            case Text(text):
                *before, last = self.parts or (Part(),)
                return replace(self, progress="answering", parts=(*before, replace(last, text=last.text + text)))
            case Section(expert):  # the text itself carries a heading for each section
                return replace(self, parts=(*self.parts, Part(expert)))
            case Sources(expert, found):
                begun = bool(self.parts) and self.parts[-1].expert == expert
                *before, last = self.parts if begun else (*self.parts, Part(expert))
                return replace(self, parts=(*before, replace(last, found=found)))
            case Done():
                return replace(self, progress="done", done=event)
            case Failed(message):
                return replace(self, progress="failed", problem=message)
            case _:
                assert_never(event)


@dataclass(frozen=True, slots=True)
class Conversation:
    """``number`` counts the page's conversations: a late write by an answer of an earlier one can be told apart."""

    number: int = 0
    exchanges: tuple[Exchange, ...] = ()

    @property
    def busy(self) -> bool:
        return bool(self.exchanges) and self.exchanges[-1].busy

    def ask(self, question: str, model: str) -> Conversation:
        return replace(self, exchanges=(*self.exchanges, Exchange(question, model)))

    def without_last(self) -> Conversation:
        return replace(self, exchanges=self.exchanges[:-1])

    def with_last(self, exchange: Exchange) -> Conversation:
        return replace(self, exchanges=(*self.exchanges[:-1], exchange))

    def settled(self) -> Conversation:
        """The same once nothing runs any more: an answer that is not complete was stopped."""
        if not self.busy:
            return self
        return self.with_last(replace(self.exchanges[-1], progress="stopped"))

    def user_turns(self, number: int) -> tuple[str, ...]:
        """What the person had said when an exchange was asked, oldest first; its question is the last."""
        asked = replace(self, exchanges=self.exchanges[: number + 1]).messages()
        return tuple(message.content for message in asked if message.role == "user")

    def messages(self) -> tuple[Message, ...]:
        """All of it as the API wants it, ending with the last question. What was never answered is left out."""
        *earlier, last = self.exchanges
        return (*_answered(earlier), Message("user", last.question))


def _answered(exchanges: Iterable[Exchange]) -> Iterable[Message]:
    for exchange in exchanges:
        if exchange.text.strip():
            yield Message("user", exchange.question)
            yield Message("assistant", exchange.text)
