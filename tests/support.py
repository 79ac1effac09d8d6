"""Small real things that the tests of routing, serving and the API share: two experts, routers, a running server."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import shutil
import socket
import subprocess
import threading
import time
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import httpx2
import numpy as np
import uvicorn

from expert_router.api.app import create_app
from expert_router.caching.engine import CachingEngine
from expert_router.caching.key import Keeping
from expert_router.live.experts import LiveExperts
from expert_router.routing.lexical import LexicalRouter
from expert_router.routing.policy import Policy
from expert_router.serving.admission import Admission
from expert_router.serving.admitted import AdmittedEngine
from expert_router.serving.asked_before import AskedBefore
from expert_router.serving.build import build_observers, build_system
from expert_router.serving.deployment import Deployment, Library
from expert_router.serving.dispatcher import Dispatcher
from expert_router.serving.parts import build_parts
from expert_router.settings import (
    DecisionLogSettings,
    EngineSettings,
    KnowledgeSettings,
    PathsSettings,
    RouterSettings,
    ServerSettings,
    ServingSettings,
    Settings,
    TelemetrySettings,
)
from expert_router.types import Expert, Found, Passage, Scores, Thresholds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from expert_router.ports import AnswerStore, DecisionLog, Engine, Knowledge, Router
    from expert_router.routing.nearest import Examples

ROOT = Path(__file__).resolve().parents[1]

SLEEP = Expert("sleep", "Sleep science", "How sleep works.", "You know sleep.", ("What is REM sleep?",))
CARS = Expert("cars", "Car history", "The history of cars.", "You know cars.", ("Who built the first car?",))
EXPERTS = {expert.name: expert for expert in (SLEEP, CARS)}
TITLES = {expert.name: expert.title for expert in EXPERTS.values()}

SLEEP_QUESTION = "What is REM sleep?"
CARS_QUESTION = "Who built the first car?"
BOTH_QUESTION = "Which car first woke a driver in need of sleep?"
OTHER_QUESTION = "What is the capital of France?"
UNSURE_QUESTION = "Why?"
EXAMPLES = (
    (SLEEP_QUESTION, frozenset({"sleep"})),
    ("Why does sleep come in cycles?", frozenset({"sleep"})),
    ("Does melatonin help sleep?", frozenset({"sleep"})),
    (CARS_QUESTION, frozenset({"cars"})),
    ("Which car had the first seat belt?", frozenset({"cars"})),
    ("Why did the Edsel car fail?", frozenset({"cars"})),
    ("Does a car driver need sleep?", frozenset({"sleep", "cars"})),
    (OTHER_QUESTION, frozenset[str]()),
    ("Who wrote Faust?", frozenset[str]()),
    ("How do I bake bread?", frozenset[str]()),
)

ANSWER_KEYS = ["query", "answer", "experts", "decision", "served", "parts", "sources", "usage", "timings", "cache"]
EXPLANATION_KEYS = ["query", "history", "decision", "thresholds", "about", "words", "words_left_out", "nearest"]
"""Of the API's and the command line's objects, in their order."""


def make_home(folder: Path) -> Path:
    """A checkout with the real experts, untrained, and profiles, and few examples for the lexical router."""
    for name in ("configs", "experts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("adapters"))
    for manifest in folder.glob("experts/*/expert.toml"):
        text = manifest.read_text("utf-8")
        manifest.write_text(re.sub(r"(?m)^\[(adapters|serve_as|abstention)\]\n[^\[]*", "", text), "utf-8")
    shutil.copy(ROOT / "models.lock", folder)
    prepared = folder / "data" / "processed"
    prepared.mkdir(parents=True)
    write_examples(prepared / "routing_train.csv")
    return folder


def write_examples(path: Path, examples: Iterable[tuple[str, frozenset[str]]] = EXAMPLES) -> Path:
    """A prepared file of questions, as routers are fitted on."""
    rows = [f'"{query}",{"|".join(sorted(experts))},test,' for query, experts in examples]
    path.write_text("\n".join(["query,experts,source,trap", *rows]) + "\n", "utf-8")
    return path


def lexical_router() -> LexicalRouter:
    return LexicalRouter(tuple(EXPERTS), EXAMPLES)


@dataclass
class FixedRouter:
    """Gives every question the same scores, and keeps what it was asked."""

    scores: Scores
    thresholds: Thresholds = field(default_factory=lambda: Thresholds(accept=0.5, clarify=0.4))
    name: str = "fixed"
    version: str = "fixed-1"
    asked: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    closed: bool = False

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(self.scores.experts)

    def score(self, query: str, history: Sequence[str] = ()) -> Scores:
        self.asked.append((query, tuple(history)))
        return self.scores

    def close(self) -> None:
        self.closed = True


class WordEncoder:
    """A sentence is the sum of its words' directions: texts that share no words are far apart.

    ``synonyms`` gives words the direction of another word. It keeps what it was asked to encode all at once.
    """

    width = 128
    sha256 = "e" * 64

    def __init__(self, synonyms: Mapping[str, str] = MappingProxyType({})) -> None:
        self.read: list[str] = []
        self._synonyms = synonyms

    def encode(self, text: str) -> NDArray[np.float32]:
        total = sum(map(self._word, re.findall(r"\w+", text.lower())), np.zeros(self.width))
        return np.asarray(total / max(float(np.linalg.norm(total)), 1e-12), dtype=np.float32)

    def encode_all(self, texts: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        self.read += texts
        return map(self.encode, texts)

    def _word(self, word: str) -> NDArray[np.float64]:
        seed = zlib.crc32(self._synonyms.get(word, word).encode())
        return np.random.default_rng(seed).normal(size=self.width)


class WaitingEncoder(WordEncoder):
    """Reads a text for each time that it is let; ``begun`` once it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.let, self.begun = threading.Semaphore(0), threading.Event()

    def encode_all(self, texts: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        for text in texts:
            self.begun.set()
            self.let.acquire()
            yield self.encode(text)


def passage(title: str, file: str, text: str) -> Passage:
    return Passage(f"{file}#1", title, text, file)


STAGES = passage("REM sleep: what happens", "sleep-stages.md", "The eyes dart about under closed lids.")
NAPS = passage("Naps", "habits/naps.md", "A nap of twenty minutes helps for hours.")
BENZ = passage("Carl Benz", "early-cars.md", "Carl Benz patented his three-wheeler in January 1886.")


@dataclass
class FixedKnowledge:
    """Finds an expert's passages in the order given whatever the question, and keeps what it was asked.

    ``excerpts`` by a passage's title; others have none.
    """

    passages: Mapping[str, Sequence[Passage]]
    excerpts: Mapping[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)
    similarity: float = 0.0

    def search(self, expert: str, question: str, history: Sequence[str] = (), limit: int = 3) -> list[Found]:
        self.asked.append((expert, question, tuple(history)))
        found = self.passages.get(expert, ())[:limit]
        return [
            Found(passage, round(1.2 - place / 10, 1), self.excerpts.get(passage.title, ""), self.similarity)
            for place, passage in enumerate(found)
        ]


def build(
    engine: Engine,
    router: Router | None = None,
    *,
    experts: Mapping[str, Expert] = EXPERTS,
    knowledge: Knowledge | None = None,
    examples: Examples | None = None,
    on_general: Literal["answer", "refuse"] = "answer",
    max_running: int = 8,
    max_queue: int = 8,
    queue_timeout_s: float = 5.0,
    max_prefills: float = inf,
    log: DecisionLog | None = None,
    answers: AnswerStore | None = None,
    per_client: bool = False,
) -> Dispatcher:
    """A dispatcher over the two experts, or ``experts``; the lexical router unless another is given.

    With ``knowledge`` they read up to three passages; with ``answers`` theirs are kept there.
    """
    router = router or lexical_router()
    policy = Policy(router.thresholds, TITLES, on_general)
    admission = Admission(max_running, max_queue, queue_timeout_s, max_prefills=max_prefills)
    engine = AdmittedEngine(engine, admission)
    asked_before = None
    if answers is not None:
        engine = CachingEngine(engine, answers, Keeping(per_client=per_client))
        asked_before = AskedBefore()
    library = None
    if knowledge is not None:
        experts = {name: replace(expert, knowledge=Path(name)) for name, expert in experts.items()}
        library = Library(knowledge, 3)
    deployed = Deployment(experts, router, policy, library, examples)
    return Dispatcher(deployed, engine, admission, log=log, asked_before=asked_before)


def live_system(home: Path, catalogue: Path, log: DecisionLogSettings | None = None) -> tuple[Dispatcher, LiveExperts]:
    """A system of the echo profile whose experts come and go, with a catalogue of its own."""
    settings = Settings(
        home=home,
        engine=EngineSettings(name="echo"),
        router=RouterSettings(name="lexical"),
        knowledge=KnowledgeSettings(passages=0),
        decision_log=log or DecisionLogSettings(),
    ).model_copy(update={"paths": PathsSettings(catalogue=catalogue)})  # over what the environment says
    parts = build_parts(settings)
    dispatcher = build_system(parts, logged=log is not None)
    return dispatcher, LiveExperts(parts, dispatcher)


def eventually(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait until it holds; fail when it does not in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not so within {within_s} s"
        time.sleep(0.005)


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    """``eventually`` for tests in an event loop, which goes on meanwhile."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)


@dataclass(frozen=True)
class Server:
    """A running server. ``http`` is a client of it; ``url`` has no path."""

    url: str
    dispatcher: Dispatcher
    http: httpx2.Client
    runner: uvicorn.Server
    thread: threading.Thread

    def stop(self) -> None:
        """Ask it to stop, and fail when it does not."""
        self.runner.should_exit = True
        self.thread.join(timeout=10)
        assert not self.thread.is_alive()

    def counts(self) -> dict[str, object]:
        """What became of the engine's requests; who is not named is none."""
        status = self.dispatcher.engine.status()
        return {name: status[name] for name in ("running", "finished", "cancelled", "failed") if status[name]}

    def post(self, **changes: Any) -> httpx2.Response:
        """Ask for a chat completion: the sleep expert's, unless ``changes`` say otherwise."""
        return self.http.post("/v1/chat/completions", json=chat_body(**changes))

    @contextmanager
    def asking(
        self, path: str = "/v1/chat/completions", body: dict[str, Any] | None = None, headers: str = ""
    ) -> Iterator[socket.socket]:
        """A connection with a request on its way; leaving the block is a client that leaves."""
        content = json.dumps(chat_body() if body is None else body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n{headers}"
        address = httpx2.URL(self.url)
        with socket.create_connection((address.host, address.port or 80), timeout=5.0) as connection:
            connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
            yield connection


started: list[Server] = []
"""Every server of this session."""


@contextmanager
def serve(
    engine: Engine,
    router: Router | None = None,
    *,
    keep_alive_s: float = 15.0,
    max_body_bytes: int = 1_048_576,
    max_tokens: int = 256,
    expected_wait_s: float | None = None,
    home_page: str = "/docs",
    warm_up: bool = False,
    send_buffer_bytes: int | None = None,
    dispatcher: Dispatcher | None = None,
    live: LiveExperts | None = None,
    admin_key: str | None = None,
    keys: Path | None = None,
    cors_origins: tuple[str, ...] = (),
    open_metrics: bool = False,
    telemetry: TelemetrySettings | None = None,
    **dispatching: Any,
) -> Iterator[Server]:
    """Run the API on a free port, in a thread of this process; ``dispatching`` is ``build``'s.

    Another ``dispatcher`` may stand for those two experts; with its ``live`` and an ``admin_key`` experts come and go.

    Leaving the block does not wait until it has stopped, which takes uvicorn 0.2 s; ``conftest`` does, at the end.
    """
    dispatcher = dispatcher or build(engine, router, **dispatching)
    settings = Settings(
        server=ServerSettings(
            keep_alive_s=keep_alive_s,
            max_body_bytes=max_body_bytes,
            admin_key=admin_key,
            keys=keys,
            cors_origins=cors_origins,
            open_metrics=open_metrics,
        ),
        serving=ServingSettings(max_tokens=max_tokens, expected_wait_s=expected_wait_s),
        telemetry=telemetry or TelemetrySettings(),
    )
    dispatcher.observers += build_observers(settings.telemetry)
    app = create_app(dispatcher, settings, home_page=home_page, warm_up=warm_up, live=live)
    listening = _listen(send_buffer_bytes)  # the server closes it
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    runner = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]}, daemon=True)
    # Certificates are not loaded: nothing here is encrypted, and it would take longer than most tests.
    with httpx2.Client(base_url=url, timeout=10.0, trust_env=False, verify=False) as http:
        server = Server(url, dispatcher, http, runner, thread)
        started.append(server)
        thread.start()
        try:
            yield server
        finally:
            runner.should_exit = True


def _listen(send_buffer_bytes: int | None) -> socket.socket:
    """Clients may connect from here on: there is no need to wait for the server's start.

    The protocol is named because asyncio switches Nagle's algorithm off only on sockets that name theirs; with it each
    piece takes 40 ms.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if send_buffer_bytes is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    return listening


def chat_body(question: str = SLEEP_QUESTION, **changes: Any) -> dict[str, Any]:
    return {"model": "sleep", "messages": [{"role": "user", "content": question}], **changes}


def events(text: str) -> list[Any]:
    """The data of each event of a stream, in order; ``[DONE]`` stays a string."""
    data = [block.removeprefix("data: ") for block in text.split("\n\n") if block.startswith("data: ")]
    return [piece if piece == "[DONE]" else json.loads(piece) for piece in data]


def run_on_full_disk(
    command: Sequence[str], file_bytes: int, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command that can write no file of more bytes, as on a disk that becomes full."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    return subprocess.run(
        command, env=environment, preexec_fn=limit, capture_output=True, text=True, check=False, timeout=30
    )
