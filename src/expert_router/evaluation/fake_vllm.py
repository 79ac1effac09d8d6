"""A server with vLLM's endpoints and no model: what a pool of servers and their supervisor are tried with.

It answers ``[model] the question`` word by word, holds adapters by name, and fails as it is told to. In a program it is
``FakeVLLM``; as a process it takes vLLM's arguments, of which it leaves out what it does not know::

    python -m expert_router.evaluation.fake_vllm serve BASE --port 9000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass
class Faults:
    """What goes wrong from now on. ``hold_after`` and ``die_after`` count words of an answer, ``silent`` says nothing.

    ``status`` refuses questions, ``broken_checks`` the list of models, ``refuse_adapters`` to load any, with which
    ``hold_adapters`` waits. What is held goes on with ``released``.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    hold_after: int | None = None
    die_after: int | None = None
    silent: bool = False
    broken_checks: bool = False
    refuse_adapters: bool = False
    hold_adapters: bool = False
    pause_s: float = 0.0
    """Before each word, as a model takes its time."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    held: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while something is held."""


class FakeVLLM:
    """``base`` is the name that it serves; with a ``key`` only who sends it is answered below ``/v1``.

    ``loads`` are the names that were loaded, each time; ``asked`` the models of the questions. ``port`` stays, so that
    one that was killed is started again where it was.
    """

    def __init__(self, base: str, *, host: str = "127.0.0.1", port: int = 0, key: str | None = None) -> None:
        self.base = base
        self.port = port
        self.faults = Faults()
        self.adapters: dict[str, str] = {}
        self.loads: list[str] = []
        self.asked: list[str] = []
        self._host = host
        self._key = key
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self.port}/v1"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, self._host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """As a process that is gone: connections break off, and what it held is forgotten."""
        if self._server is not None:
            self._server.close()
        for task, writer in self._connections.items():
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self.adapters.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._connections[task] = writer
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                start, *lines = head.split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                method, path, _ = start.split(" ")
                await self._answer(writer, f"{method} {path}", headers, json.loads(body or b"{}"))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            del self._connections[task]

    async def _answer(
        self, writer: asyncio.StreamWriter, what: str, headers: Mapping[str, str], body: dict[str, Any]
    ) -> None:
        if self._key and "/v1/" in what and headers.get("authorization") != f"Bearer {self._key}":
            await _say(writer, HTTPStatus.UNAUTHORIZED, {"error": "Unauthorized"})
            return
        match what:
            case "GET /health":
                await _say(writer, HTTPStatus.OK, "")
            case "GET /v1/models":
                if self.faults.broken_checks:
                    await _say(writer, HTTPStatus.INTERNAL_SERVER_ERROR, _error("The engine is dead."))
                else:
                    names = [{"id": name, "object": "model"} for name in (self.base, *self.adapters)]
                    await _say(writer, HTTPStatus.OK, {"object": "list", "data": names})
            case "POST /v1/load_lora_adapter":
                await self._load(writer, body["lora_name"], body["lora_path"])
            case "POST /v1/unload_lora_adapter":
                known = self.adapters.pop(body["lora_name"], None) is not None
                status = HTTPStatus.OK if known else HTTPStatus.NOT_FOUND
                await _say(writer, status, "Success" if known else _error("The adapter cannot be found."))
            case "POST /v1/chat/completions":
                await self._complete(writer, body)
            case _:
                await _say(writer, HTTPStatus.NOT_FOUND, {"detail": "Not Found"})

    async def _load(self, writer: asyncio.StreamWriter, name: str, path: str) -> None:
        if self.faults.hold_adapters:
            await self._hold(self.faults)
        if name in self.adapters:
            await _say(writer, HTTPStatus.BAD_REQUEST, _error(f"The lora adapter '{name}' has already been loaded."))
        elif self.faults.refuse_adapters or not Path(path).is_dir():  # noqa: ASYNC240 - on a disk here
            await _say(writer, HTTPStatus.NOT_FOUND, _error(f"Loading lora {name} failed: No adapter found for {path}"))
        else:
            self.loads.append(name)
            self.adapters[name] = path
            await _say(writer, HTTPStatus.OK, f"Success: LoRA adapter '{name}' added successfully.")

    async def _complete(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        model, faults = body["model"], self.faults
        self.asked.append(model)
        if faults.silent:
            await self._hold(faults)
        if faults.status is not None:
            await _say(writer, faults.status, _error("Told to fail."), faults.headers)
            return
        if model != self.base and model not in self.adapters:
            await _say(writer, HTTPStatus.NOT_FOUND, _error(f"The model `{model}` does not exist."))
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        words = f"[{model}] {body['messages'][-1]['content']}".split()[: body["max_tokens"]]
        for count, word in enumerate(words):
            if faults.pause_s:
                await asyncio.sleep(faults.pause_s)
            if count == faults.hold_after:
                await self._hold(faults)
            if count == faults.die_after:
                writer.transport.abort()
                raise ConnectionError
            await _event(writer, {"choices": [{"delta": {"content": f"{word} "}}]})
        await _event(writer, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
        await _event(writer, {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": len(words)}})
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await writer.drain()

    async def _hold(self, faults: Faults) -> None:
        faults.held.set()
        await faults.released.wait()


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "Error", "param": None, "code": None}}


async def _say(
    writer: asyncio.StreamWriter, status: int, value: object, headers: Mapping[str, str] | None = None
) -> None:
    body = json.dumps(value).encode()
    lines = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    head = f"HTTP/1.1 {int(status)} {HTTPStatus(status).phrase}\r\n"
    head += "".join(f"{name}: {text}\r\n" for name, text in lines.items())
    writer.write(f"{head}\r\n".encode() + body)
    await writer.drain()


async def _event(writer: asyncio.StreamWriter, about: dict[str, Any]) -> None:
    body = f"data: {json.dumps({'object': 'chat.completion.chunk', **about})}\n\n".encode()
    writer.write(b"%x\r\n%b\r\n" % (len(body), body))
    await writer.drain()


def main(arguments: Sequence[str]) -> int:
    """The command line of vLLM, as far as it is needed; ``--fake-fault`` makes it fail, ``--fake-pause-s`` slow."""
    parser = argparse.ArgumentParser()
    parser.add_argument("serve")
    parser.add_argument("base")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--served-model-name")
    parser.add_argument("--fake-fault", choices=["die", "never-healthy", "deaf"])
    parser.add_argument("--fake-pause-s", type=float, default=0.0)
    known, _ = parser.parse_known_args(arguments)
    if known.fake_fault == "die":
        print("RuntimeError: told to die", file=sys.stderr)  # noqa: T201 - a program's own output
        return 3
    print(f"serving {known.served_model_name or known.base}", flush=True)  # noqa: T201
    if known.fake_fault == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(known))
    return 0


async def _serve(known: argparse.Namespace) -> None:
    server = FakeVLLM(
        known.served_model_name or known.base,
        host=known.host,
        port=known.port,
        key=os.environ.get("VLLM_API_KEY"),
    )
    server.faults.pause_s = known.fake_pause_s
    if known.fake_fault != "never-healthy":
        await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
