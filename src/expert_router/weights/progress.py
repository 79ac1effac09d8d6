"""How a file's arrival is shown on stderr: a bar in a terminal, else one plain line a step, or nothing at all."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_POLL_S = 0.1
_NAME_COLUMNS = 28
"""Leaves room for a bar in a terminal of 80 columns."""


class Progress:
    """One file's progress in bytes that are to be downloaded; ``shown=False`` is silence."""

    def __init__(self, name: str, *, shown: bool) -> None:
        self._name = name
        self.shown = shown
        self._terminal = shown and sys.stderr.isatty()
        self._bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def start(self, total: int, done: int = 0) -> None:
        """Begin with a source: ``total`` bytes, of which ``done`` are here from an earlier run."""
        self._close()
        if self._terminal:
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=self._name if len(self._name) <= _NAME_COLUMNS else f"{self._name[: _NAME_COLUMNS - 1]}…",
                unit="B",
                unit_scale=True,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {rate_fmt} {remaining}{postfix}",
                file=sys.stderr,
            )

    def step(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            self.note(text)

    def reach(self, done: int) -> None:
        """Move the bar to ``done`` bytes; it never runs past its end nor back."""
        if self._bar is not None:
            self._bar.update(max(0, min(done, self._bar.total) - self._bar.n))

    def note(self, text: str) -> None:
        """A line that stays, above the bar if there is one."""
        if self.shown:
            tqdm.write(f"{self._name}: {text}", file=sys.stderr)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def watch_growth(folder: Path, report: Callable[[int], None]) -> Iterator[None]:
    """While the body runs, report ten times a second how many bytes the largest file below ``folder`` has.

    pip's machine-readable progress needs a newer pip than the one a new environment of Python 3.11 holds, and the
    hub's client draws bars of its own; a growing file looks the same whoever writes it.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_POLL_S):
            with suppress(OSError):  # files come and go under the walk
                report(max((path.stat().st_size for path in folder.rglob("*") if path.is_file()), default=0))

    thread = threading.Thread(target=watch, name="watch-growth", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
