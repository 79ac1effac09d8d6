"""JSON lines in, JSON lines out: what ``route`` and ``ask`` share when they work through a file.

A line that cannot be used, or whose answer fails, comes back with an ``error``: no line is lost, order is kept.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from expert_router.errors import DataError, ExpertRouterError, InvalidRequestError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import TextIO


def question_in(args: Namespace, verb: str) -> str:
    """The question on the command line, empty when a file is given. Raises ``InvalidRequestError`` without either."""
    query = " ".join(args.question).strip()
    if not query and not args.input:
        example = f'expert-router {verb} "What is REM sleep?"'
        raise InvalidRequestError(f"Give a question, or --input FILE. For example: {example}")
    return query


def run_batch(source: str, target: str, answer: Callable[[dict[str, Any]], dict[str, Any]], workers: int) -> int:
    """``answer`` gets each line's object, with a non-empty ``query``. ``-`` is standard input or output.

    Returns 0, or 1 when some lines came back with an error. Raises ``DataError`` when a file cannot be used.
    """
    if target not in {"-", ""} and source != "-" and Path(source).resolve() == Path(target).resolve():
        raise DataError(f"{target} is the input: name another file for the output.")
    lines = _read_lines(source)
    pool = ThreadPoolExecutor(workers)
    try:
        with _open_target(target) as output:
            results = [pool.submit(_answer_line, line, answer) for line in lines]
            return _write_in_order(results, output)
    finally:  # running answers end with the system that gives them; nobody waits for them here
        pool.shutdown(wait=False, cancel_futures=True)


def _write_in_order(results: list[Future[dict[str, Any]]], output: TextIO) -> int:
    """Write each result as soon as those before it are there; when interrupted, also the finished ones behind it."""
    failed = written = 0

    def write(result: dict[str, Any]) -> None:
        nonlocal failed, written
        failed += "error" in result
        written += 1
        output.write(json.dumps(result, ensure_ascii=False) + "\n")
        output.flush()

    try:
        for result in tqdm(results, unit="question", disable=None):
            write(result.result())
    except KeyboardInterrupt:
        for result in results[written:]:
            if result.done():
                write(result.result())
        print(f"Stopped after {written} of {len(results)} lines.", file=sys.stderr)
        raise
    if failed:
        print(f"{failed} of {len(results)} lines came back with an error.", file=sys.stderr)
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
    except (ValueError, RecursionError) as error:
        return {"line": line, "error": f"not JSON: {error}"}
    query = item.get("query") if isinstance(item, dict) else None
    if not isinstance(query, str) or not query.strip():
        return {"line": line, "error": 'not an object with a "query" that is text and not empty'}
    item.pop("error", None)  # of an earlier try
    history = item.get("history", [])
    if not isinstance(history, list) or not all(isinstance(turn, str) for turn in history):
        return {**item, "error": '"history" must be a list of earlier user turns'}
    try:
        return {**item, **answer(item)}
    except ExpertRouterError as error:
        return {**item, "error": str(error)}
