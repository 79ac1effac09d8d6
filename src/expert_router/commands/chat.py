"""``expert-router chat``: a conversation in the terminal."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from expert_router.errors import ExpertRouterError
from expert_router.types import AUTO, Message

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from expert_router.facade import ExpertRouter

HELP = "talk in the terminal"
INTRODUCTION = (
    "Ask about {experts}. /model NAME chooses who answers, /clear starts anew, /quit leaves; Ctrl-C stops an answer."
)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", default=AUTO, metavar="NAME", help="auto (default), an expert, or general")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="an answer's length (default: 256)")


def main(args: Namespace) -> int:
    with suppress(ImportError):
        import readline  # noqa: F401 - line editing and history, where the platform has it

    import expert_router

    with expert_router.open(args.config) as system:
        print(INTRODUCTION.format(experts=", ".join(system.experts)))
        _Conversation(system, args.model, args.max_tokens).run()
    return 0


class _Conversation:
    def __init__(self, system: ExpertRouter, model: str, max_tokens: int) -> None:
        self._system = system
        self._model = model
        self._max_tokens = max_tokens
        self._messages: list[Message] = []

    def run(self) -> None:
        while True:
            try:
                line = input("\n> ").strip()
            except (EOFError, KeyboardInterrupt):
                print()
                return
            if line == "/quit":
                return
            if line.startswith("/"):
                self._obey(line)
            elif line:
                self._answer(line)

    def _obey(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        if command == "/clear":
            self._messages = []
            print("The conversation starts anew.")
        elif command == "/model" and argument in {AUTO, *self._system.experts}:
            self._model = argument
            print(f"From now on: {argument}.")
        elif command == "/model":
            print(f"Known: {', '.join([AUTO, *self._system.experts])}.")
        else:
            print("Known: /model NAME, /clear, /quit.")

    def _answer(self, question: str) -> None:
        from expert_router.commands.ask import print_answer

        messages = [*self._messages, Message("user", question)]
        try:
            text = asyncio.run(print_answer(self._system, messages, model=self._model, max_tokens=self._max_tokens))
        except ExpertRouterError as error:
            print(f"\n{error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("\n(stopped)")
        else:
            self._messages = [*messages, Message("assistant", text)]
