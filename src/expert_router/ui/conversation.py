"""What the page remembers of one conversation: values that change only by being replaced."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, assert_never

from expert_router.types import AUTO, Message
from expert_router.ui.client import Done, Event, Failed, Routed, Section, Text

if TYPE_CHECKING:
    from collections.abc import Iterable

Progress = Literal["asked", "answering", "done", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and what came of it. ``model`` is what the person chose; ``routed`` is who answers."""

    question: str
    model: str = AUTO
    progress: Progress = "asked"
    routed: Routed | None = None
    text: str = ""
    done: Done | None = None
    problem: str = ""

    @property
    def busy(self) -> bool:
        return self.progress in {"asked", "answering"}

    def after(self, event: Event) -> Exchange:
        match event:
            case Routed():
                return replace(self, progress="answering", routed=event)
            case Text(text):
                return replace(self, progress="answering", text=self.text + text)
            case Section():  # the text itself carries a heading for each section
                return self
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

    def messages(self) -> tuple[Message, ...]:
        """All of it as the API wants it, ending with the last question. What was never answered is left out."""
        *earlier, last = self.exchanges
        return (*_answered(earlier), Message("user", last.question))


def _answered(exchanges: Iterable[Exchange]) -> Iterable[Message]:
    for exchange in exchanges:
        if exchange.text.strip():
            yield Message("user", exchange.question)
            yield Message("assistant", exchange.text)
