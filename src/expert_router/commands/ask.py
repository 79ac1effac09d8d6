"""``expert-router ask``: one question, or a file of them, answered in the terminal."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expert_router.knowledge.grounding import cited
from expert_router.types import AUTO, Routed, Section, Sources

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator, Sequence

    from expert_router.facade import ExpertRouter
    from expert_router.types import Message

HELP = "ask a question and stream the answer"
BATCH_WORKERS = 8


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("question", nargs="*", help="the question")
    parser.add_argument("--model", default=AUTO, metavar="NAME", help="auto (default), an expert, or general")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="the answer's length (default: 256)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) is deterministic")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of streaming")
    parser.add_argument("--input", metavar="F.jsonl", help='a file of {"query"} lines; - is standard input')
    parser.add_argument("--output", metavar="G.jsonl", default="-", help="where the answers go (default: -)")


def main(args: Namespace) -> int:
    import expert_router
    from expert_router.commands.batch import question_in, run_batch
    from expert_router.serving.objects import answer_object

    query = question_in(args, "ask")
    options: dict[str, Any] = {"model": args.model, "max_tokens": args.max_tokens, "temperature": args.temperature}
    with expert_router.open(args.config) as system:

        def answer(item: dict[str, Any]) -> dict[str, Any]:
            return answer_object(system.ask(item["query"], **options))

        if args.input:
            return run_batch(args.input, args.output, answer, workers=BATCH_WORKERS)
        if args.json:
            print(json.dumps(answer({"query": query}), ensure_ascii=False))
        else:
            asyncio.run(print_answer(system, query, **options))
    return 0


@dataclass
class _Part:
    """What one expert wrote, and what it was given to read."""

    text: str = ""
    sources: Sources | None = None


async def print_answer(system: ExpertRouter, query: str | Sequence[Message], **options: Any) -> str:
    """Stream an answer to the terminal, who answers first and the sources it cites last; returns its text."""
    parts = [_Part()]
    async with aclosing(system.stream(query, **options)) as events:
        async for event in events:
            match event:
                case Routed():
                    who = ", ".join(event.experts) or event.decision.kind
                    print(f"[{who}] {event.decision.reason}", file=sys.stderr)
                case Section():
                    parts.append(_Part())
                case Sources():
                    parts[-1].sources = event
            parts[-1].text += event.text
            print(event.text, end="", flush=True)
    print(flush=True)
    for part in parts:
        for line in _cited_lines(part, named=len(parts) > 1):
            print(line, file=sys.stderr)
    return "".join(part.text for part in parts)


def _cited_lines(part: _Part, *, named: bool) -> Iterator[str]:
    """One line a passage that the text cites; ``named`` puts the expert in front, as each counts its own."""
    if part.sources is None:
        return
    in_text = cited(part.text, part.sources.found)
    owner = f"{part.sources.expert} " if named else ""
    for number, found in enumerate(part.sources.found, start=1):
        if found in in_text:
            yield f"{owner}[{number}] {found.passage.title} ({found.passage.file})"
