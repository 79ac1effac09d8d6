"""``expert-router bench leaving``: how fast a client that leaves frees what it held, through each way in."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expert_router.commands.measuring import machine
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import AsyncGenerator, Iterator

    from expert_router.evaluation.leaving import Held, Leaving
    from expert_router.serving.dispatcher import Dispatcher
    from expert_router.serving.parts import Parts
    from expert_router.settings import Settings

HELP = "how fast a client that leaves frees the engine"
FIRST_TOKEN_S, TOKEN_S = 0.3, 0.02
"""Of the echo engine, which would be done before anybody could leave."""
QUESTION = "What happens in the brain in REM sleep? "
BATCH_OF = 8
BATCH_TIMES = 5


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--times", type=int, default=20, metavar="N", help="leavings at each point (default: 20)")
    parser.add_argument(
        "--words",
        type=int,
        default=300,
        metavar="N",
        help="of a question, so that reading it takes time (default: 300)",
    )


def run(args: Namespace, settings: Settings) -> int:
    """The page's way is its client's. One may run at a time, so that who waits can be seen."""
    from expert_router.serving.parts import build_parts

    if args.times < 1 or args.words < 1:
        raise ConfigError("--times and --words take numbers from 1 on.")
    settings = settings.model_copy(
        update={"serving": settings.serving.model_copy(update={"max_running": 1, "max_queue": 8})}
    )
    parts = build_parts(settings, progress=True)
    numbers = itertools.count()

    def question() -> str:
        repeated = QUESTION * (int(args.words) // len(QUESTION.split()) + 1)
        return f"Number {next(numbers)}: {repeated}"

    with _served(parts) as (dispatcher, url):
        results = asyncio.run(_measure(dispatcher, url, question, args.times))
    stopped = [_interrupted_batch(parts) for _ in range(min(args.times, BATCH_TIMES))]
    if args.json:
        about = {"machine": machine(), "engine": settings.engine.name, "base_model": settings.engine.base_model}
        print(json.dumps({**about, "results": [asdict(each) for each in results], "batch_s": stopped}, indent=2))
    else:
        _show(results, stopped, settings)
    return 0


async def _measure(dispatcher: Dispatcher, url: str, question: Any, times: int) -> list[Leaving]:
    import httpx2

    from expert_router.evaluation.leaving import Held, measure_leaving
    from expert_router.types import Message
    from expert_router.ui.client import ChatClient, Text

    def held() -> Held:
        door = dispatcher.admission
        return Held.of(dispatcher.engine.status(), door.running, door.waiting)

    async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:

        async def chat(said: str, *, stream: bool) -> AsyncGenerator[str]:
            body = {"messages": [{"role": "user", "content": said}], "stream": stream}
            async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                async for line in response.aiter_lines():
                    if '"delta":{"content":"' in line:
                        yield line

        async def query(said: str) -> AsyncGenerator[str]:
            yield (await http.post("/query", json={"query": said})).text

        async def page(said: str) -> AsyncGenerator[str]:
            async for event in ChatClient(url).stream_chat([Message("user", said)]):
                if isinstance(event, Text):
                    yield event.text

        ways = [
            ("stream", lambda said: chat(said, stream=True), True),
            ("whole", lambda said: chat(said, stream=False), False),
            ("query", query, False),
            ("page", page, True),
        ]
        results = []
        for name, visit, streams in ways:
            results += await measure_leaving(name, visit, held, question, times=times, streams=streams)
        return results


def _system(parts: Parts) -> Dispatcher:
    from expert_router.engines.echo import EchoEngine, EchoScript
    from expert_router.serving.build import answer_store, assemble, build_engine, build_library, build_router

    slow = EchoScript(FIRST_TOKEN_S, TOKEN_S)
    engine = EchoEngine(slow) if parts.settings.engine.name == "echo" else build_engine(parts)
    answers = answer_store(parts.settings.cache)
    return assemble(parts, build_router(parts), engine, library=build_library(parts), answers=answers)


@contextmanager
def _served(parts: Parts) -> Iterator[tuple[Dispatcher, str]]:
    """The system behind a server in a thread of its own; its models are loaded."""
    import socket

    import uvicorn

    from expert_router.api.app import create_app
    from expert_router.types import GENERAL

    dispatcher = _system(parts)
    for expert in (GENERAL, *sorted(dispatcher.experts.keys() - {GENERAL})):
        asyncio.run(dispatcher.engine.warm_up(dispatcher.experts[expert]))
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named: no Nagle's delay
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    config = uvicorn.Config(create_app(dispatcher, parts.settings), log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield dispatcher, f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def _interrupted_batch(parts: Parts) -> float:
    """Seconds from Ctrl-C in the middle of a batch until everything is closed and the models' memory given back."""
    from expert_router.commands.batch import run_batch
    from expert_router.evaluation.leaving import Held
    from expert_router.facade import ExpertRouter

    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # else it is ignored where a shell runs this behind its back
    dispatcher = _system(parts)
    asyncio.run(dispatcher.engine.warm_up(dispatcher.experts["general"]))
    interrupted_at = 0.0

    def interrupt() -> None:
        nonlocal interrupted_at
        while not Held.of(dispatcher.engine.status(), 0, 0).running:
            time.sleep(0.001)
        interrupted_at = time.perf_counter()
        os.kill(os.getpid(), signal.SIGINT)

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "questions.jsonl"
        source.write_text("".join(json.dumps({"query": f"{n}: {QUESTION}"}) + "\n" for n in range(BATCH_OF)), "utf-8")
        threading.Thread(target=interrupt).start()
        with suppress(KeyboardInterrupt), ExpertRouter(dispatcher, 256) as system:
            run_batch(str(source), os.devnull, lambda item: {"text": system.ask(item["query"]).text}, BATCH_OF)
    return time.perf_counter() - interrupted_at


def _show(results: list[Leaving], stopped: list[float], settings: Settings) -> None:
    engine = settings.engine
    print(f"\n{engine.name}, {engine.base_model}: until what a client held is free   {machine()}")
    print("way     left in      p50        p95        worst      of   cancelled in the engine")
    for r in results:
        times = f"{r.p50_ms:>7.1f} ms {r.p95_ms:>7.1f} ms {r.worst_ms:>7.1f} ms"
        print(f"{r.way:<8}{r.point:<8}{times}{r.times:>5}   {r.cancelled}")
    print(f"A batch that is interrupted is over after {sorted(stopped)[len(stopped) // 2] * 1000:.0f} ms (median).")
