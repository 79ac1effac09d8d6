"""``serve --workers``: processes that answer on one address, each with an engine of its own, replaced when they die."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from uvicorn.config import STARTUP_FAILURE

from expert_router.commands import EXIT_USER_ERROR
from expert_router.engines.threads import inference_threads
from expert_router.errors import ExpertRouterError
from expert_router.telemetry.workers import Workers

if TYPE_CHECKING:
    import socket

    from expert_router.settings import Settings

FUTILE = {EXIT_USER_ERROR, STARTUP_FAILURE}
"""Exit statuses of workers whose replacement would fail like them."""
PAUSE_S = 0.5
"""Before a worker is replaced, so that one that dies at once does not keep the machine busy."""

logger = logging.getLogger(__name__)
spawn = multiprocessing.get_context("spawn")


def run_workers(settings: Settings, listener: socket.socket, workers: int, *, warm_up: bool) -> int:
    """Until asked to end, or until one cannot start; the exit status.

    ``listener`` listens already; all take connections from it, so that none is lost while a worker is replaced.
    """
    folder = TemporaryDirectory(prefix="expert-router-", ignore_cleanup_errors=True)
    places = [Workers(Path(folder.name), number, workers) for number in range(workers)]
    settings = _of_one_worker(settings, workers)
    # Told through a pipe: an exception, wherever it came, would leave a worker that is being started without its work.
    asked_to_end, ask = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(ask, b"."))
    running = [_start((settings, listener, place, warm_up)) for place in places]
    try:
        while asked_to_end not in wait([asked_to_end, *(worker.sentinel for worker in running)]):
            for number, worker in enumerate(running):
                if worker.exitcode is None:
                    continue
                logger.error("worker died", extra={"worker": worker.pid, "status": worker.exitcode})
                if worker.exitcode in FUTILE:
                    return EXIT_USER_ERROR
                time.sleep(PAUSE_S)
                running[number] = _start((settings, listener, places[number], warm_up))
        return 0
    finally:
        listener.close()  # each worker closes its own: who comes now is refused instead of waiting for nobody
        for worker in running:
            worker.terminate()
        for worker in running:
            worker.join()
        folder.cleanup()


def _start(arguments: tuple[Settings, socket.socket, Workers, bool]) -> multiprocessing.context.SpawnProcess:
    worker = spawn.Process(target=_work, args=arguments, daemon=True)
    worker.start()
    return worker


def _of_one_worker(settings: Settings, workers: int) -> Settings:
    """The processors are shared out: engines with a thread for each of them would stall one another."""
    threads = settings.engine.threads or max(1, inference_threads(None) // workers)
    return settings.model_copy(update={"engine": settings.engine.model_copy(update={"threads": threads})})


def _work(settings: Settings, listener: socket.socket, workers: Workers, warm_up: bool) -> None:
    from expert_router.api.app import create_app
    from expert_router.commands.serve import run_app
    from expert_router.live.experts import LiveExperts
    from expert_router.observability import configure_logging
    from expert_router.serving.build import build_system
    from expert_router.serving.parts import build_parts

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the supervisor ends the workers
    configure_logging(settings.log_level)
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    try:
        parts = build_parts(settings)
        dispatcher = build_system(parts)
    except ExpertRouterError as error:
        print(f"expert-router: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    live = LiveExperts(parts, dispatcher)
    run_app(create_app(dispatcher, settings, warm_up=warm_up, live=live, workers=workers), settings, listener)


def _end_with_supervisor() -> None:
    """One that was killed leaves nobody behind on its address."""
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    supervisor.join()
    os.kill(os.getpid(), signal.SIGTERM)
