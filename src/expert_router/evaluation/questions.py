"""What the experts are asked: the prepared test questions, or public ones with the accepted answers as aliases."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from expert_router.errors import ConfigError, DataError
from expert_router.knowledge.grounding import UNKNOWN
from expert_router.training.examples import read_questions, read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from expert_router.types import Expert

T = TypeVar("T")

TEST_SPLIT = "test"
LONG = "long"
"""The ``answer_type`` of a public question whose answer is a text, not a fact."""


@dataclass(frozen=True, slots=True)
class Question:
    """``references`` are answers to compare with, the best match counts; ``keys`` the alternatives of the fact.

    Without keys an answer is compared, but is never right or wrong. ``prose``: the references are whole sentences.
    """

    text: str
    expert: str
    references: tuple[str, ...]
    keys: tuple[str, ...]
    data: str = TEST_SPLIT
    prose: bool = True


def prepared_questions(expert: Expert, prepared: Path) -> list[Question]:
    """The expert's questions that trained nothing. Raises ``DataError``."""
    rows = read_questions(prepared / f"test_{expert.split_name}.csv")
    return [Question(row.question, expert.name, (row.answer,), row.keys) for row in rows]


def unanswerable_questions(expert: Expert, split: str = TEST_SPLIT) -> list[Question]:
    """The expert's questions that none of its texts answers: a CSV with the columns question and split.

    Without a split a question is a test question. Raises ``DataError``.
    """
    if expert.unanswerable is None:
        return []
    rows = read_rows(
        expert.unanswerable,
        "a file of questions",
        lambda row: (row.get("split") or TEST_SPLIT, row["question"]),
    )
    return [Question(text, expert.name, (UNKNOWN,), (), "unanswerable") for of, text in rows if of == split]


def public_questions(path: Path, experts: Sequence[str]) -> list[Question]:
    """JSON lines with ``question``, ``aliases`` and ``answer_type``; ``expert`` (or ``label``) says whose it is.

    A file without it belongs to the only one of ``experts``; questions of others are left out. Raises ``DataError``,
    and ``ConfigError`` when it cannot be told whose a question is.
    """
    try:
        lines = path.read_text("utf-8-sig").split("\n")  # splitlines would also cut at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    questions = [_from_json(line, path, number, experts) for number, line in enumerate(lines, start=1) if line.strip()]
    chosen = [question for question in questions if question.expert in experts]
    if not chosen:
        raise DataError(f"{path} has no question for {', '.join(experts)}.")
    return chosen


def _from_json(line: str, path: Path, number: int, experts: Sequence[str]) -> Question:
    try:
        row: dict[str, Any] = json.loads(line)
        text, aliases, kind = row["question"], row["aliases"], row.get("answer_type", "")
        owner = row.get("expert") or row.get("label")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}, line {number}: not an object with question and aliases: {error!r}") from error
    texts = [text, *aliases] if isinstance(aliases, list) else [None]
    if not aliases or not all(isinstance(each, str) and each.strip() for each in texts):
        raise DataError(f"{path}, line {number}: question must be a text, and aliases a list of texts, none empty.")
    if owner is None and len(experts) == 1:
        (owner,) = experts
    if not isinstance(owner, str):
        raise ConfigError(f"{path}, line {number}: whose question is it? Name one expert with --experts NAME.")
    return Question(text, owner, tuple(aliases), () if kind == LONG else tuple(aliases), path.stem, prose=False)


def sample(items: Iterable[T], limit: int | None, text: Callable[[T], str], group: Callable[[T], str]) -> list[T]:
    """So many of each group, in their order: those whose text has the smallest hash.

    Whatever the order of the file, the same are taken, and a larger limit adds to a smaller one.
    """
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(group(item), []).append(item)
    return [item for members in groups.values() for item in _fewest(members, limit, text)]


def _fewest(members: list[T], limit: int | None, text: Callable[[T], str]) -> list[T]:
    if limit is None or len(members) <= limit:
        return members
    order = sorted(range(len(members)), key=lambda n: hashlib.sha256(text(members[n]).encode()).digest())
    return [members[n] for n in sorted(order[:limit])]


def keys_by_question(questions: Iterable[Question]) -> Mapping[str, tuple[str, ...]]:
    """Two experts may have the same question: the passages that hold either's key answer it."""
    keys: dict[str, tuple[str, ...]] = {}
    for question in questions:
        keys[question.text] = keys.get(question.text, ()) + question.keys
    return keys
