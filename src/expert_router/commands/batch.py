"""JSON lines in, JSON lines out: what ``route`` and ``ask`` share when they work through a file.

A line that cannot be used, or whose answer fails, comes back with an ``error``: no line is lost, order is kept.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from expert_router.errors import DataError, ExpertRouterError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import TextIO


def run_batch(source: str, target: str, answer: Callable[[dict[str, Any]], dict[str, Any]], workers: int) -> int:
    """``answer`` gets each line's object, with a non-empty ``query``. ``-`` is standard input or output.

    Returns 0, or 1 when some lines came back with an error. Raises ``DataError`` when a file cannot be used.
    """
    lines = _read_lines(source)
    failed = 0
    with _open_target(target) as output, ThreadPoolExecutor(workers) as pool:
        results = pool.map(lambda line: _answer_line(line, answer), lines)
        for result in tqdm(results, total=len(lines), unit="question", disable=None):
            failed += "error" in result
            output.write(json.dumps(result, ensure_ascii=False) + "\n")
            output.flush()
    if failed:
        print(f"{failed} of {len(lines)} lines came back with an error.", file=sys.stderr)
    return int(failed > 0)


def _read_lines(source: str) -> list[str]:
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source} cannot be read: {error}") from error
    # Not splitlines: inside of JSON's strings there may be other characters that it takes for line ends.
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    if not lines:
        raise DataError(f'{source} has no lines. Each is an object with a question: {{"query": "What is REM sleep?"}}')
    return lines


def _open_target(target: str) -> AbstractContextManager[TextIO]:
    try:
        return nullcontext(sys.stdout) if target == "-" else Path(target).open("w", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error}") from error


def _answer_line(line: str, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    try:
        item = json.loads(line)
        json.dumps(item, ensure_ascii=False).encode()  # half of a surrogate pair is JSON and yet no text
    except ValueError as error:
        return {"line": line, "error": f"not JSON: {error}"}
    query = item.get("query") if isinstance(item, dict) else None
    if not isinstance(query, str) or not query.strip():
        return {"line": line, "error": 'not an object with a "query" that is text'}
    item.pop("error", None)  # of an earlier try
    history = item.get("history", [])
    if not isinstance(history, list) or not all(isinstance(turn, str) for turn in history):
        return {**item, "error": '"history" must be a list of earlier user turns'}
    try:
        return {**item, **answer(item)}
    except ExpertRouterError as error:
        return {**item, "error": str(error)}
