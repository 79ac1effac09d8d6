"""A Ray cluster of several nodes on this machine, and the system on it, for the tests of ``deploy``.

Experts of the echo engine, each of another temper; the engine's script comes with the application.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.config import HTTPOptions

from expert_router.deploy.ray_serve import NAME, application
from expert_router.engines.echo import EchoScript
from expert_router.settings import (
    CacheSettings,
    EngineSettings,
    KnowledgeSettings,
    PathsSettings,
    RaySettings,
    RouterSettings,
    ServerSettings,
    Settings,
)
from support import chat_body, events, make_home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from expert_router.engines.echo import EchoEngine
    from expert_router.serving.parts import Parts

NODES = 3
OBJECT_STORE_BYTES = 80 * 1024**2
ADMIN_KEY = "a-key-of-sixteen-characters"
TEMPERS = {
    "calm": EchoScript(token_delay_s=0.1),
    "quick": EchoScript(),
    "late": EchoScript(first_token_delay_s=2.0),
    "tight": EchoScript(context_length=3),
    "broken": EchoScript(fail_before=True),
    "full": EchoScript(max_slots=0),
}
WORDS = 40
QUESTION = " ".join(f"word{n}" for n in range(WORDS))
"""A calm answer to it takes 4 s."""


@dataclass(frozen=True)
class Nodes:
    """``port`` is that of Serve's proxy, on the head alone, where gateways are too."""

    cluster: Cluster
    port: int

    def add(self) -> None:
        self.cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)

    def kill(self, node_id: str) -> None:
        """As when its plug is pulled."""
        (node,) = (each for each in self.cluster.list_all_nodes() if each.node_id == node_id)
        self.cluster.remove_node(node, allow_graceful=False)


@contextmanager
def cluster() -> Iterator[Nodes]:
    """Small nodes that are counted with a processor each, the head with three more for gateways."""
    head = {"num_cpus": 4, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    running = Cluster(initialize_head=True, head_node_args=head)
    port = free_port()
    nodes = Nodes(running, port)
    try:
        for _ in range(NODES - 1):
            nodes.add()
        ray.init(address=running.address, log_to_driver=False)
        serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host="127.0.0.1", port=port))
        yield nodes
    finally:
        serve.shutdown()
        ray.shutdown()
        running.shutdown()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def settings(folder: Path, **wanted: Any) -> Settings:
    """A checkout with the experts of ``TEMPERS``; ``wanted`` are Ray's settings."""
    home = folder / "home"
    if not home.exists():
        make_home(home)
        for name in TEMPERS:
            write_expert(home, name, f"The {name} one")
    values = {"gateway_cpus": 1.1, "replica_cpus": 0.4, "target_ongoing_requests": 4, "silence_s": 5, **wanted}
    return Settings(
        home=home,
        engine=EngineSettings(name="echo"),
        router=RouterSettings(name="lexical"),
        knowledge=KnowledgeSettings(passages=0),
        cache=CacheSettings(store="none"),
        server=ServerSettings(admin_key=ADMIN_KEY),
        ray=RaySettings(**values),
    ).model_copy(update={"paths": PathsSettings(catalogue=folder / "catalogue")})


def write_expert(home: Path, name: str, title: str) -> None:
    folder = home / "experts" / name
    folder.mkdir(exist_ok=True)
    lines = {"name": name, "title": title, "description": title, "instructions": f"You are {title}."}
    text = "".join(f'{key} = "{value}"\n' for key, value in lines.items())
    (folder / "expert.toml").write_text(f'{text}examples = ["Who is {name}?"]\n', "utf-8")


def echo_by_temper(tempers: Mapping[str, EchoScript]) -> Callable[[Parts], EchoEngine]:
    """A factory that reaches the replicas as it is: this module is not to be found there."""

    def make_engine(parts: Parts) -> EchoEngine:  # noqa: ARG001 - as factories of engines are called
        from expert_router.engines.echo import EchoEngine

        return EchoEngine(by_expert=tempers)

    return make_engine


@dataclass(frozen=True)
class System:
    """The running application. ``http`` is a client of the first node's proxy."""

    settings: Settings
    http: httpx2.Client

    def deploy(self, changed: Settings | None = None) -> None:
        """Once more, in place of what runs; returns once that is over."""
        serve.run(application(changed or self.settings, echo_by_temper(TEMPERS)), name=NAME)

    def replicas(self) -> dict[str, dict[str, Any]]:
        """What each replica of the engine says of itself now, by name; who does not answer is left out."""
        handle = serve.get_deployment_handle("engine", NAME)
        said = handle.broadcast("status").results(timeout_s=10, return_exceptions=True)
        return {each["replica"]: each for each in said if isinstance(each, dict)}

    def replica_running(self, runs: int = 1) -> dict[str, Any]:
        """Wait for a replica with so many runs."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for each in self.replicas().values():
                if each["running"] == runs:
                    return each
            time.sleep(0.02)
        raise AssertionError(f"no replica has {runs} runs within 10 s: {self.replicas()}")

    def totals(self, name: str) -> int:
        return sum(each[name] for each in self.replicas().values())

    def ask(self, model: str, question: str = "Who?", **changes: Any) -> httpx2.Response:
        return self.http.post("/v1/chat/completions", json=chat_body(question, model=model, **changes))

    def streaming(self, model: str, question: str = QUESTION) -> Stream:
        return Stream(self.http, chat_body(question, model=model, stream=True, max_tokens=500))


class Stream:
    """A streamed answer, read in a thread of its own; ``begun`` is set with its first text."""

    def __init__(self, http: httpx2.Client, body: dict[str, Any]) -> None:
        self.begun = threading.Event()
        self.status = 0
        self.text = ""
        self._http, self._body = http, body
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._http.stream("POST", "/v1/chat/completions", json=self._body) as response:
            self.status = response.status_code
            for piece in response.iter_text():
                self.text += piece
                if '"delta":{"content":"' in self.text:
                    self.begun.set()

    def wait_for_text(self) -> Stream:
        assert self.begun.wait(10), self.text
        return self

    @property
    def said(self) -> str:
        """The answer's text so far, or its last whole event's."""
        whole = self.text[: self.text.rfind("\n\n") + 2]
        pieces = [piece for piece in events(whole) if piece != "[DONE]"]
        return "".join(choice["delta"].get("content", "") for piece in pieces for choice in piece.get("choices", ()))

    @property
    def failed(self) -> bool:
        return any("error" in event for event in events(self.text))

    def ended(self, within_s: float = 20) -> list[Any]:
        """All its events. Fails where it hangs."""
        self._thread.join(within_s)
        assert not self._thread.is_alive(), f"hangs after {self.text!r}"
        return events(self.text)

    def answer(self, within_s: float = 20) -> str:
        """Its whole text. Fails when it ended otherwise than it should."""
        *_, done = self.ended(within_s)
        assert done == "[DONE]", self.text
        assert not self.failed, self.text
        return self.said


@contextmanager
def system(port: int, folder: Path, **wanted: Any) -> Iterator[System]:
    """In place of what runs."""
    made = settings(folder, **wanted)
    serve.delete(NAME)
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False, verify=False) as http:
        running = System(made, http)
        running.deploy()
        try:
            yield running
        finally:
            serve.delete(NAME)
