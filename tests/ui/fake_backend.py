"""A small real server that follows the HTTP contract, with scripted answers, delays and failures.

The last question picks the script by a word in it (``SCRIPTS``); everything else is answered by the sleep expert. It
records what it was asked, and which questions' streams were left by their client before the end.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

TITLES = {"cars": "Car history", "sleep": "Sleep science", "general": "General"}
EXAMPLES = {
    "cars": ["Who built the first car, and when?", "why did the edsel flop"],
    "sleep": ["What happens in the brain during REM sleep?", "i wake at 3 am every night, why?"],
}
DESCRIPTIONS = {
    "cars": "The history of cars: makers, models, people, racing, industry, design and technology over time.",
    "sleep": "Sleep, dreams, body clocks and tiredness: how sleep works, what disturbs it and what helps.",
}
ODD_REASON = "<i>Sure</i> ${1 + 1} {{value}} &amp;"
ODD_TITLE = "<b>Still</b> ${1 + 1} {{value}} &amp; muscles"
MARKUP = (
    "Safe **bold** and `<b>code</b>`, but <img src=x onerror=\"document.title='hacked'\"> "
    "<script>document.title='hacked'</script> ![pixel](http://203.0.113.1/pixel.png) [link](javascript:alert(1))"
)


def decision(
    kind: str, experts: list[str], scores: tuple[float, float], runner_up: str | None, reason: str
) -> dict[str, Any]:
    cars, sleep = scores
    return {
        "kind": kind,
        "experts": experts,
        "scores": {"cars": cars, "sleep": sleep, "none": round(1 - max(scores), 2)},
        "runner_up": runner_up,
        "reason": reason,
        "router": "fake",
        "prediction_set": experts,
        "choices": experts if kind == "clarify" else [],
    }


SLEEP = decision("single", ["sleep"], (0.04, 0.97), "cars", "This is about sleep: Sleep science scored 97 %.")
CARS = decision("single", ["cars"], (0.95, 0.03), "general", "This is about cars: Car history scored 95 %.")
BOTH = decision("several", ["sleep", "cars"], (0.81, 0.92), None, "The question needs both experts.")
GENERAL = decision("general", [], (0.05, 0.08), "sleep", "No expert fits, so the base model answers.")
CLARIFY = decision("clarify", ["cars", "sleep"], (0.48, 0.52), None, "Two experts fit about equally well.")
REFUSED = decision("refused", [], (0.02, 0.03), "sleep", "No expert fits, and general questions are switched off here.")


def source(expert: str, number: int, title: str, file: str, text: str) -> dict[str, Any]:
    about = {"expert": expert, "number": number, "id": f"{file}#{number}", "title": title, "file": file, "text": text}
    return {**about, "score": round(1.2 - number / 10, 2)}


SOURCES = {
    "sleep": [
        source("sleep", 1, "REM sleep: what happens", "sleep-stages.md", "The eyes dart about under closed lids."),
        source("sleep", 2, "Naps", "habits/naps.md", "A nap of twenty minutes helps for hours."),
        source("sleep", 3, ODD_TITLE, "odd & rare.md", f"{MARKUP}\nA second line."),
    ],
    "cars": [
        source("cars", 1, "Seat belts", "safety.md", "Nils Bohlin's three-point belt came in 1959."),
        source("cars", 2, "Drowsiness alerts", "comfort-and-gadgets.md", "Volvo offered Driver Alert Control in 2007."),
    ],
}
"""What each expert reads, whatever it is asked."""


EXPLANATION = {
    "thresholds": {"accept": 0.5, "clarify": 0.35},
    "words_left_out": 0,
    "nearest": [
        {"query": f"{ODD_TITLE}?", "experts": ["sleep"], "cosine": 0.91},
        {"query": "Who built the first car?", "experts": ["cars", "sleep"], "cosine": 0.4312},
        {"query": "A poem", "experts": [], "cosine": 0.1},
    ],
}
"""What every explanation has in common; its words weigh the more the longer they are, and "the" speaks against."""


def explanation(body: dict[str, Any], script: Script, *, nearest: bool) -> dict[str, Any]:
    turns = [body["query"], *reversed(body["history"])]
    about = script.decision["choices"] or script.decision["experts"] or ["general"]
    words = [
        {
            "text": match[0],
            "start": match.start(),
            "end": match.end(),
            "turns_back": turns_back,
            "weights": {name: -1.25 if match[0] == "the" else len(match[0]) / 2 for name in about},
        }
        for turns_back, turn in enumerate(turns)
        for match in re.finditer(r"\w+", turn)
    ]
    asked = {"query": body["query"], "history": body["history"], "decision": script.decision, "about": about}
    return {**EXPLANATION, **asked, "words": words, **({} if nearest else {"nearest": None})}


@dataclass(frozen=True)
class Script:
    decision: dict[str, Any]
    answered_by: list[str]
    text: str
    token_delay_s: float = 0.02
    ending: str = "done"
    """done, error (an error event), break (the connection breaks), hang (silence), garbage."""


SCRIPTS = {
    "car": Script(CARS, ["cars"], "Karl Benz built the **Patent-Motorwagen** in 1885 and patented it in January 1886."),
    "drowsy": Script(BOTH, ["sleep", "cars"], ""),
    "capital": Script(GENERAL, ["general"], "The capital of France is Paris."),
    "jaguar": Script(CLARIFY, [], "Do you mean *Car history* or *Sleep science*?"),
    "poem": Script(REFUSED, [], "I can only answer questions about sleep science and car history."),
    "long": Script(SLEEP, ["sleep"], "word " * 400, token_delay_s=0.05),
    "cited": Script(SLEEP, ["sleep"], "Muscles are still [3]. The eyes move [1]: [1](x) and [9] stay as they are."),
    "unknown": Script(SLEEP, ["sleep"], "I don't know: the texts I have do not say."),
    "markup": Script({**SLEEP, "reason": ODD_REASON}, ["sleep"], MARKUP),
    "failing": Script(SLEEP, ["sleep"], "It begins well [1] ", ending="error"),
    "breaking": Script(SLEEP, ["sleep"], "It begins well ", ending="break"),
    "hanging": Script(SLEEP, ["sleep"], "It begins well ", ending="hang"),
    "garbage": Script(SLEEP, ["sleep"], "It begins well ", ending="garbage"),
}
DEFAULT = Script(
    SLEEP,
    ["sleep"],
    "During REM sleep the brain is nearly as active as when awake: the eyes move, dreams are vivid, muscles are still.",
)


def script_for(question: str) -> Script:
    return next((script for word, script in SCRIPTS.items() if word in question), DEFAULT)


SECTIONS = {
    "sleep": "Sleepy drivers react late [1]. ",
    "cars": "Carmakers added drowsiness alerts from 2007 on [2]. ",
}


@dataclass
class FakeBackend:
    """Starts and stops on one port, so that a page sees it go down and come back."""

    port: int = 0
    route_delay_s: float = 0.02
    text_delay_s: float = 0.02
    """Between the decision and the first text; longer lets a reader see who answers first."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    preferences: list[str] = field(default_factory=list)
    """What the questions' headers prefer."""
    left: list[str] = field(default_factory=list)
    explained: list[dict[str, Any]] = field(default_factory=list)
    explain_delay_s: float = 0.0
    examples_read: bool = True
    logs: bool = False
    """Whether decisions have an id; feedback on one of them is kept in ``feedback``."""
    feedback: list[dict[str, Any]] = field(default_factory=list)
    _server: uvicorn.Server | None = None
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self.port = self.port or free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        config = uvicorn.Config(
            self.app(), host="127.0.0.1", port=self.port, log_level="critical", timeout_graceful_shutdown=0
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started, "the fake backend starts")

    def stop(self) -> None:
        if self._server and self._thread:
            self._server.should_exit = self._server.force_exit = True
            self._thread.join(timeout=5)

    def app(self) -> FastAPI:
        app = FastAPI()
        app.add_api_route("/v1/models", self._models)
        app.add_api_route("/v1/chat/completions", self._chat, methods=["POST"], response_model=None)
        app.add_api_route("/v1/explain", self._explain, methods=["POST"], response_model=None)
        app.add_api_route("/v1/feedback", self._feedback, methods=["POST"], response_model=None)
        return app

    async def _explain(self, body: dict[str, Any]) -> Response:
        self.explained.append(body)
        question = body["query"].lower()
        await asyncio.sleep(self.explain_delay_s)
        if "unexplained" in question:
            error = {"message": "The router is away.", "type": "not_ready_error", "param": None, "code": None}
            return JSONResponse({"error": error}, 503)
        if "garbled" in question:
            return JSONResponse({"query": question})
        return JSONResponse(explanation(body, script_for(question), nearest=self.examples_read))

    async def _models(self) -> dict[str, Any]:
        return {"object": "list", "data": [model_entry(name) for name in ("auto", "cars", "sleep", "general")]}

    async def _chat(self, body: dict[str, Any], request: Request) -> Response:
        self.requests.append(body)
        self.preferences.append(request.headers.get("prefer", ""))
        question = body["messages"][-1]["content"].lower()
        if "overload" in question:
            error = {"message": "Too many questions wait.", "type": "overloaded_error", "param": None, "code": None}
            return JSONResponse({"error": error}, 429, {"Retry-After": "7"})
        script = script_for(question)
        if body["model"] != "auto":
            script = forced(body["model"], script)
        if self.logs:
            script = replace(script, decision={**script.decision, "id": f"id-{len(self.requests)}"})
        await asyncio.sleep(self.route_delay_s)
        return StreamingResponse(self._stream(question, script), media_type="text/event-stream")

    async def _feedback(self, body: dict[str, Any]) -> Response:
        if "deleted" in self.requests[-1]["messages"][-1]["content"]:
            error = {
                "message": "There is no such decision.",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
            return JSONResponse({"error": error}, 404)
        self.feedback.append({name: value for name, value in body.items() if value is not None})
        return Response(status_code=204)

    async def _stream(self, question: str, script: Script) -> AsyncIterator[str]:
        try:
            async for line in stream_lines(script, self.text_delay_s):
                yield line
        except (asyncio.CancelledError, GeneratorExit):
            self.left.append(question)
            raise


def model_entry(name: str) -> dict[str, Any]:
    about = {
        "title": TITLES.get(name, "Automatic"),
        "description": DESCRIPTIONS.get(name, ""),
        "examples": EXAMPLES.get(name, []),
    }
    return {"id": name, "object": "model", "created": 0, "owned_by": "expert-router", "expert_router": about}


def forced(name: str, script: Script) -> Script:
    chosen = {
        "kind": "forced",
        "experts": [] if name == "general" else [name],
        "scores": None,
        "runner_up": None,
        "reason": f"You asked for {TITLES[name]}.",
        "router": "",
    }
    return Script(chosen, [name], script.text, script.token_delay_s, script.ending)


async def stream_lines(script: Script, text_delay_s: float) -> AsyncIterator[str]:
    titles = {name: TITLES[name] for name in script.answered_by}
    served = {name: {"base": "fake-base", "adapter": "ab12cd34" * 8} for name in script.answered_by}
    about = {"decision": script.decision, "experts": script.answered_by, "titles": titles, "served": served}
    yield line_of({"role": "assistant", "content": ""}, expert_router=about)
    yield ": keep-alive\n\n"
    await asyncio.sleep(text_delay_s)
    for delta, extra in pieces(script):
        yield line_of({"content": delta}, **extra)
        await asyncio.sleep(script.token_delay_s)
    if script.ending == "hang":
        await asyncio.sleep(30)
    if script.ending == "break":
        raise ConnectionResetError("scripted")
    if script.ending == "garbage":
        yield "data: {not json\n\n"
        return
    if script.ending == "error":
        yield f"data: {json.dumps({'error': {'message': 'The engine stopped.', 'type': 'engine_error'}})}\n\n"
        return
    timings = {"route_s": 0.003, "first_token_s": 0.41, "total_s": 1.62}
    cache = dict.fromkeys(script.answered_by, "hit")
    yield line_of({}, finish="stop", expert_router={"timings": timings, "cache": cache})
    usage = {"prompt_tokens": 40, "completion_tokens": 25, "total_tokens": 65}
    yield f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': [], 'usage': usage})}\n\n"
    yield "data: [DONE]\n\n"


def pieces(script: Script) -> Iterator[tuple[str, dict[str, Any]]]:
    if len(script.answered_by) == 1 or not script.answered_by:
        yield from sources_piece(script.answered_by)
        for word in script.text.split(" "):
            yield word + " ", {}
        return
    for name in script.answered_by:
        yield f"\n\n**{TITLES[name]}**\n\n", {"expert_router": {"section": name}}
        yield from sources_piece([name])
        for word in SECTIONS[name].split(" "):
            yield word + " ", {}


def sources_piece(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in names:
        if name in SOURCES:
            yield "", {"expert_router": {"sources": SOURCES[name]}}


def line_of(delta: dict[str, Any], finish: str | None = None, **extra: Any) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "auto", "choices": [choice]}
    return f"data: {json.dumps({**chunk, **extra})}\n\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Any, what: str, timeout_s: float = 8.0) -> Any:
    """Poll until the condition holds and give its value; fail with what was awaited."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_s} s in vain: {what}")
