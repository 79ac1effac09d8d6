"""The server's side of a pipeline: starts the process that it runs in (``stepping``), and hands out what comes back.

Callers read events from an asyncio queue, so many event loops may use one batcher. It knows nothing of chat, text or
experts: token ids in, token ids out.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from expert_router.engines.child import LOADING_S, speaks, start
from expert_router.engines.slots import TokenCounters
from expert_router.engines.stepping import Event, TokenBatch, is_last
from expert_router.errors import EngineError, EngineTimeoutError, ExpertRouterError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
    from multiprocessing.connection import Connection
    from pathlib import Path

CHILD = "from expert_router.engines.stepping import main; main()"
KERNELS = 128
"""So many compiled kernels of each sort a pipeline keeps; the least recently used go first. Each number of tokens that
a step may have, 256 of them, has its own: kept for ever they take 1.7 MiB a number in a model of 135 M weights, 430 in
all. One that is compiled anew takes 3 ms of a step; those that recur while answers are written are kept."""


@dataclass(eq=False, slots=True)
class _Request:
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)


class Batcher:
    """``connection`` leads to a ``Stepper``; ``stop`` ends it, if it has not ended yet, and says how it did.

    One whose step takes longer than ``step_timeout_s`` is ended. ``died`` is told why it ended, unless it was closed;
    it is called in another thread.
    """

    def __init__(
        self,
        connection: Connection[Any, Any],
        stop: Callable[[], str],
        name: str,
        *,
        step_timeout_s: float,
        died: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._connection = connection
        self._stop = stop
        self._step_timeout_s = step_timeout_s
        self._died = died
        self._numbers = itertools.count()
        self._requests: dict[int, _Request] = {}
        self._door = threading.Lock()  # no request comes in behind the end, where nobody would see it
        self._ended: EngineError | None = None
        self.counters = TokenCounters()
        # Not by the caller: a full connection is emptied between steps only, and an event loop cannot wait so long.
        self._sender = ThreadPoolExecutor(1, thread_name_prefix=f"to-{name}")
        self._reader = threading.Thread(target=self._read, name=f"from-{name}", daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        return self._ended is None

    async def generate(self, prompt: Any, config: Any) -> AsyncGenerator[TokenBatch]:
        """Generate until the model ends or the caller leaves; leaving frees the slot before the next step.

        Raises ``EngineError``, also when the pipeline's process dies, and ``EngineTimeoutError`` when it hangs.
        """
        number, request = next(self._numbers), _Request(asyncio.get_running_loop())
        with self._door:
            if self._ended is not None:
                raise self._fresh_error()
            self._requests[number] = request
            self._sender.submit(self._connection.send, ("add", number, prompt, config))
        finished = False
        try:
            while not finished:
                event = await request.events.get()
                finished = is_last(event)
                if isinstance(event, ExpertRouterError):
                    raise event
                yield event
        finally:
            if not finished:
                self._leave(number)

    def close(self) -> None:
        """Fail what still runs and give the pipeline's memory back."""
        self._refuse(EngineError("The engine was shut down."))
        self._stop()
        self._reader.join()

    def _leave(self, number: int) -> None:
        with self._door:
            if self._requests.pop(number, None) is not None and self._ended is None:
                self._sender.submit(self._connection.send, ("cancel", number))

    def _refuse(self, why: EngineError) -> bool:
        """From now on, whoever comes; the first reason stands. Whether this is it."""
        with self._door:
            first = self._ended is None
            self._ended = self._ended or why
            self._sender.shutdown(wait=False)
        return first

    def _fresh_error(self) -> EngineError:
        """For each request its own: what is raised collects where it went."""
        assert self._ended is not None
        return type(self._ended)(self._ended.message)

    def _read(self) -> None:
        hangs = False
        with suppress(EOFError, OSError):  # a process that dies closes the connection, or resets it
            while not (hangs := not speaks(self._connection, self._step_timeout_s, self._awaits)):
                self.counters, events = self._connection.recv()
                self._deliver(events)
        how = self._stop()
        if hangs:
            limit = f"a step took longer than {self._step_timeout_s:g} s"
            why: EngineError = EngineTimeoutError(
                f"The model hangs ({limit}) and was ended; ask again to start another."
            )
            how = f"hung: {limit}"
        else:
            why = EngineError(f"The model's process ended ({how}); the next question starts another.")
        if self._refuse(why):
            self._died(how)
        failed: list[tuple[int, Event]] = [(number, self._fresh_error()) for number in list(self._requests)]
        self.counters = replace(self.counters, running=0, failed=self.counters.failed + len(failed))
        self._deliver(failed)
        self._connection.close()

    def _awaits(self) -> bool:
        """Whether a step is to be expected."""
        return bool(self._requests) or self.counters.running > 0

    def _deliver(self, events: Iterable[tuple[int, Event]]) -> None:
        """All in one wake-up per event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Request, Event]]] = {}
        for number, event in events:
            take = self._requests.pop if is_last(event) else self._requests.get
            if (request := take(number, None)) is not None:  # else it has left
                by_loop.setdefault(request.loop, []).append((request, event))
        for loop, outbox in by_loop.items():
            with suppress(RuntimeError):  # that loop was closed: nobody waits there any more
                loop.call_soon_threadsafe(_put_all, outbox)


def _put_all(events: list[tuple[_Request, Event]]) -> None:
    for request, event in events:
        request.events.put_nowait(event)


def start_pipeline(
    name: str,
    folder: Path,
    scheduler: Mapping[str, object],
    device: Mapping[str, object],
    *,
    step_timeout_s: float,
    died: Callable[[str], None] = lambda _: None,
) -> Batcher:
    """Load the model in a process of its own; ``scheduler`` and ``device`` are the library's settings.

    ``died`` also hears of one that ends while it loads. Raises ``NotReadyError``.
    """
    connection, stop, _ = start(
        CHILD,
        (str(folder), dict(scheduler), {"CPU_RUNTIME_CACHE_CAPACITY": KERNELS, **device}),
        f"The model in {folder} cannot be loaded",
        loading_s=max(LOADING_S, 2 * step_timeout_s),
        died=died,
        proposed={"ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(KERNELS)},  # it keeps what the runtime's cache drops
    )
    return Batcher(connection, stop, name, step_timeout_s=step_timeout_s, died=died)
