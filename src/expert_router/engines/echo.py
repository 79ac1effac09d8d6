"""The shipped fake: an engine without a model that answers by repeating the question and says who was asked.

The demo, the tests and the load tests run on it. A script gives it the delays and the failures of a real engine, so
that everything around the engine is exercised without weights. A token is a word.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from expert_router.engines.slots import SlotCounters
from expert_router.errors import ContextLengthError, EngineError, OverloadedError
from expert_router.types import Chunk, Served, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from expert_router.types import Expert, FinishReason, GenerationParams, Message

MOST_REPEATED_WORDS = 100_000
_WORD = re.compile(r"\s*\S+(?:\s+\Z)?")


@dataclass(frozen=True, slots=True)
class EchoScript:
    """How the engine behaves; the default answers at once and never fails.

    The ``*_after_tokens`` count the words sent before it happens (0: before the first); an answer that is shorter is
    not touched. ``fail_before`` fails once ``first_token_delay_s`` has passed.
    """

    first_token_delay_s: float = 0.0
    token_delay_s: float = 0.0
    fail_before: bool = False
    fail_after_tokens: int | None = None
    hang_after_tokens: int | None = None
    """Sends nothing more until the stream or the engine is closed."""
    context_length: int | None = None
    """Words of prompt and answer together."""
    max_slots: int | None = None
    """Refuses a request while this many run in the whole engine."""


INSTANT = EchoScript()
SAME_FOR_ALL: Mapping[str, EchoScript] = MappingProxyType({})


class EchoEngine:
    """Answers ``[<expert's title>] You asked: <question>``, deterministically.

    ``by_expert`` replaces the script for single experts, by name. Temperature, top_p and seed change nothing; with
    ``ignore_eos`` it says the same again and again.
    """

    name = "echo"

    def __init__(self, script: EchoScript = INSTANT, by_expert: Mapping[str, EchoScript] = SAME_FOR_ALL) -> None:
        self._script = script
        self._by_expert = dict(by_expert)
        self._slots = SlotCounters()
        self._closed = asyncio.Event()

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        """See ``ports.Engine``; also raises ``OverloadedError`` beyond ``max_slots``.

        The slot is free before the last chunk is handed over.
        """
        script = self._by_expert.get(expert.name, self._script)
        self._refuse_beyond(script.max_slots)
        with self._slots.slot():
            prompt_tokens = sum(len(message.content.split()) for message in messages)
            room = _room(prompt_tokens, script.context_length, params.max_tokens)
            reply = _reply(expert, messages)
            if params.ignore_eos:
                reply = _repeated(reply, min(room, MOST_REPEATED_WORDS))
            words, finish_reason = _cut(reply, params.stop, room)
            for count, word in enumerate(words):
                await self._play(script, count)
                yield Chunk(word)
            await self._play_failures(script, len(words))
        yield Chunk("", finish_reason, Usage(prompt_tokens, len(words)))

    def served(self, expert: Expert) -> Served:  # noqa: ARG002 - the same for all
        return Served("echo")

    def identity(self, expert: Expert) -> str:
        """The title is said in the answer, the script may cut it short."""
        return repr((expert.title, self._by_expert.get(expert.name, self._script)))

    async def warm_up(self, expert: Expert) -> None:
        """Nothing to load."""

    def status(self) -> dict[str, object]:
        return {"engine": self.name, **asdict(self._slots)}

    async def close(self) -> None:
        """End the streams that still run with ``EngineError`` at their next word."""
        self._closed.set()

    def _refuse_beyond(self, max_slots: int | None) -> None:
        if max_slots is not None and self._slots.running >= max_slots:
            raise OverloadedError(f"All {max_slots} slots of the echo engine are taken; try again.", retry_after_s=1.0)

    async def _play(self, script: EchoScript, count: int) -> None:
        """What happens before word ``count``: the delay, then what the script has in store."""
        await asyncio.sleep(script.token_delay_s if count else script.first_token_delay_s)
        if script.fail_before:
            raise EngineError("The echo engine failed before its first word, as its script says.")
        await self._play_failures(script, count)

    async def _play_failures(self, script: EchoScript, count: int) -> None:
        if script.fail_after_tokens == count:
            raise EngineError(f"The echo engine failed after {count} words, as its script says.")
        if script.hang_after_tokens == count:
            await self._closed.wait()
        if self._closed.is_set():
            raise EngineError("The echo engine was closed.")


def _reply(expert: Expert, messages: Sequence[Message]) -> str:
    question = next((message.content for message in reversed(messages) if message.role == "user"), "")
    return f"[{expert.title}] You asked: {question}"


def _repeated(text: str, words: int) -> str:
    """Said again and again, until it has more than so many words."""
    return " ".join([text.strip()] * (words // len(text.split()) + 1))


def _room(prompt_tokens: int, context_length: int | None, max_tokens: int) -> int:
    """How many words the answer may have. Raises ``ContextLengthError`` when the prompt leaves no room for one."""
    if context_length is None:
        return max_tokens
    if prompt_tokens >= context_length:
        raise ContextLengthError(
            f"The conversation has {prompt_tokens} tokens; the context holds {context_length}, the answer included. "
            "Shorten it.",
            param="messages",
        )
    return min(max_tokens, context_length - prompt_tokens)


def _cut(text: str, stop: Sequence[str], max_tokens: int) -> tuple[list[str], FinishReason]:
    """The words to send, which joined are the answer: up to the first stop sequence, at most ``max_tokens``."""
    end = min((at for mark in stop if mark and (at := text.find(mark)) >= 0), default=len(text))
    words = _WORD.findall(text[:end])
    return words[:max_tokens], "length" if len(words) > max_tokens else "stop"
