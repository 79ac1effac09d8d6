"""``expert-router serve``: the API and the chat page on one address."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
from importlib.util import find_spec
from typing import TYPE_CHECKING

from expert_router.commands.exposure import require_closed, tls_files
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from fastapi import FastAPI

    from expert_router.settings import Settings

HELP = "start the API and the chat page"
PAGE = "/chat"
BACKLOG = 2048


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--host", help="address to listen on (default: server.host, 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes a free one (default: server.port, 8000)")
    parser.add_argument("--no-page", action="store_true", help="the API alone, without the chat page")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes, each with its own engine, and no page (default: server.workers, 1)",
    )
    parser.add_argument("--engine", metavar="NAME", help="in place of engine.name; vllm starts vLLM on a GPU here")
    parser.add_argument("--insecure", action="store_true", help="listen beyond this machine without keys")
    parser.add_argument("--ray", action="store_true", help="on Ray: gateways and engines, and no page (docs/ray.md)")
    parser.add_argument("--lazy", action="store_true", help="load the base model with the first question, not at start")


def main(args: Namespace) -> int:
    # Before numpy is imported: its matrices here are small, the cores are the engine's, and a thread of OpenBLAS that
    # misses its wake-up leaves the one that waits for it spinning for ever (docs/log.md).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # A container's first process has no default: it would go on loading until it is killed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    from expert_router.observability import configure_logging
    from expert_router.serving.build import build_system
    from expert_router.serving.embedded import prepare_base_model
    from expert_router.serving.parts import build_parts
    from expert_router.settings import load_settings

    settings = load_settings(args.config)
    if args.engine is not None:
        engine = settings.engine.model_copy(update={"name": args.engine})
        settings = settings.model_copy(update={"engine": engine})
    configure_logging(settings.log_level)
    listener = listen(args.host or settings.server.host, settings.server.port if args.port is None else args.port)
    require_closed(listener, settings, insecure=args.insecure)
    address = reachable(listener, settings)
    if args.ray:
        return _main_on_ray(settings, listener, address)
    workers = settings.server.workers if args.workers is None else args.workers
    if workers != 1:
        return _main_with_workers(args, settings, listener, workers, address)
    parts = build_parts(settings, progress=True)
    dispatcher = build_system(parts)
    if settings.engine.name == "openvino":
        # Here, so that its progress bar is over before the server speaks.
        prepare_base_model(settings, settings.engine.base_model, progress=True)

    from expert_router.api.app import create_app
    from expert_router.live.experts import LiveExperts

    with_page = not args.no_page and _page_is_installed()
    live = LiveExperts(parts, dispatcher)
    home_page = PAGE if with_page else "/docs"
    app = create_app(dispatcher, settings, home_page=home_page, warm_up=not args.lazy, live=live)
    if with_page:
        app = _with_page(app, settings, address)
    listener.listen(BACKLOG)  # before it is announced: who comes now waits a moment instead of being refused
    _announce(address, settings, with_page=with_page)
    run_app(app, settings, listener)
    return 0


def run_app(app: FastAPI, settings: Settings, listener: socket.socket, grace_s: float | None = None) -> None:
    """Until asked to end; streams that run are finished first, or told that the server ends.

    They have ``grace_s``, or else the settings' time.
    """
    import uvicorn

    from expert_router.api.connections import limited
    from expert_router.commands.serve_end import EndingServer

    certificate, key = tls_files(settings) or (None, None)
    config = uvicorn.Config(
        app,
        http=limited(settings.server),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    # Asked to end, uvicorn finishes the streams and then raises the signal again, which would be a death by it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    gc.freeze()  # what is here now stays: each full collection would look through it again, for milliseconds
    EndingServer(config, settings.server.shutdown_grace_s if grace_s is None else grace_s).run(sockets=[listener])


def _main_with_workers(args: Namespace, settings: Settings, listener: socket.socket, workers: int, address: str) -> int:
    """The page keeps its conversations in its process, which the next click may not reach: it runs beside them."""
    from expert_router.commands.serve_workers import run_workers
    from expert_router.serving.embedded import prepare_base_model

    if workers < 1:
        raise ConfigError(f"--workers takes a number from 1 on, not {workers}.")
    if settings.engine.name == "vllm":
        raise ConfigError(
            "Each of several workers would start a vLLM of its own. Leave workers at 1, or start vLLM beside them and "
            "set engine.name to openai_http and engine.base_url to where it is."
        )
    if settings.engine.name == "openvino":
        prepare_base_model(settings, settings.engine.base_model, progress=True)
    listener.listen(BACKLOG)
    _announce(address, settings, with_page=False)
    print(f"  {workers} workers; the chat page apart: expert-router chat-page --backend {address}\n", flush=True)
    return run_workers(settings, listener, workers, warm_up=not args.lazy)


def _main_on_ray(settings: Settings, listener: socket.socket, address: str) -> int:
    """Until asked to end. Ray's proxies listen on every node, so that this process only finds out if they can."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported, which would report its use
    try:
        from expert_router.deploy.ray_serve import LOCAL, start, stop
    except ImportError as error:
        raise ConfigError(f"--ray needs Ray ({error}): pip install 'expert-router[ray]'") from error
    if settings.server.tls_cert is not None:
        raise ConfigError("Ray's proxies speak no TLS: put a proxy that does in front of them, and leave tls_cert out.")
    from expert_router.serving.embedded import prepare_base_model

    if settings.engine.name == "openvino":
        prepare_base_model(settings, settings.engine.base_model, progress=True)
    host, port = listener.getsockname()[:2]
    listener.close()
    asked_to_end = threading.Event()
    try:
        start(settings, host, port, os.environ.get("RAY_ADDRESS") or LOCAL)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: asked_to_end.set())
        _announce(address, settings, with_page=False)
        asked_to_end.wait()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # who does not want to wait for streams asks again
    finally:
        stop()
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Bind first of all: a taken port is said before any model is loaded.

    The protocol is named because asyncio switches Nagle's delay off only on sockets that name it: a stream of small
    pieces would stall for 40 ms otherwise.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        why = error.strerror if isinstance(error, OSError) else error
        advice = " Choose another port: --port 8001, or EXPERT_ROUTER_SERVER__PORT=8001."
        raise ConfigError(f"Cannot listen on {host}:{port} ({why}).{advice}") from error
    return listener


def reachable(listener: socket.socket, settings: Settings) -> str:
    """The address for a client on this machine: loopback where the server listens everywhere.

    Raises ``ConfigError`` when it is to be encrypted and cannot be.
    """
    scheme = "https" if tls_files(settings) else "http"
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        host = "127.0.0.1" if listener.family == socket.AF_INET else "::1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _page_is_installed() -> bool:
    if find_spec("gradio") is not None:
        return True
    logging.getLogger(__name__).warning("no chat page: gradio is not installed (pip install 'expert-router[ui]')")
    return False


def _with_page(app: FastAPI, settings: Settings, address: str) -> FastAPI:
    from expert_router.ui.chat import mount

    tls = tls_files(settings)
    return mount(app, address, PAGE, certificate=tls[0] if tls else None)


def _announce(address: str, settings: Settings, *, with_page: bool) -> None:
    print(f"\n  expert-router is at {address}   (Ctrl-C stops it)\n")
    if with_page:
        print(f"  chat page     {address}{PAGE}")
    print(f"  API           {address}/docs")
    question = '{"model": "auto", "messages": [{"role": "user", "content": "What is REM sleep?"}]}'
    key = " -H 'authorization: Bearer KEY'" if settings.server.keys else ""
    url = f"{address}/v1/chat/completions"
    print(f"  for example   curl {url}{key} -H 'content-type: application/json' -d '{question}'\n", flush=True)
