"""A new expert as somebody proposes it: checked, and written as the folder that an expert is."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expert_router.artifacts import write_atomically
from expert_router.catalogue import EXAMPLES_FILE, KNOWLEDGE_FOLDER
from expert_router.errors import DataError, InvalidRequestError
from expert_router.knowledge.corpus import SUFFIXES, read_corpus
from expert_router.types import AUTO, GENERAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MOST_EXAMPLES = 10_000
MOST_CHARACTERS = 4_000
"""Of one example."""
MOST_KNOWLEDGE_BYTES = 64 * 1024**2
SHOWN_EXAMPLES = 3
COLUMNS = ("question", "answer", "key")


@dataclass(frozen=True, slots=True)
class TaughtExample:
    """A question of the field; ``answer`` and ``key`` may be empty, and only training an adapter needs them."""

    question: str
    answer: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Proposal:
    """``knowledge`` are files by their name below the knowledge folder. What is empty gets a default of the name."""

    name: str
    title: str = ""
    description: str = ""
    instructions: str = ""
    examples: tuple[TaughtExample, ...] = ()
    knowledge: dict[str, bytes] = field(default_factory=dict)

    def taught(self) -> list[str]:
        return taught([example.question for example in self.examples], self.spoken, self.description)

    @property
    def spoken(self) -> str:
        return self.title or self.name.replace("_", " ").capitalize()

    def write(self, folder: Path) -> None:
        manifest: dict[str, Any] = {
            "name": self.name,
            "title": self.spoken,
            "description": self.description or f"Questions about {self.spoken.lower()}.",
            "instructions": self.instructions or _instructions(self.spoken),
            "examples": [example.question for example in self.examples[:SHOWN_EXAMPLES]],
        }
        lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in manifest.items()]
        if self.knowledge:
            lines += ["", "[data]", f'knowledge = "{KNOWLEDGE_FOLDER}"']
        write_atomically(folder / "expert.toml", ("\n".join(lines) + "\n").encode())
        write_atomically(folder / EXAMPLES_FILE, _csv(self.examples))
        for name, content in self.knowledge.items():
            write_atomically(folder / KNOWLEDGE_FOLDER / name, content)


def check(proposal: Proposal, known: Iterable[str]) -> Proposal:
    """The proposal without doubled and empty examples.

    Raises ``InvalidRequestError`` that says what to change, or ``DataError`` of knowledge that cannot be read.
    """
    name = proposal.name
    if name in {AUTO, GENERAL} or not name.isascii() or not name.isidentifier() or name != name.lower():
        raise InvalidRequestError(
            f"The name {name!r} must be lower-case letters, digits and _, begin with a letter, and be neither "
            f"{AUTO!r} nor {GENERAL!r}.",
            param="name",
        )
    if name in set(known):
        raise InvalidRequestError(f"There is an expert {name!r} already. Remove it first, or replace it.", param="name")
    kept = {example.question.strip(): example for example in proposal.examples if example.question.strip()}
    if not kept and not proposal.description.strip():
        raise InvalidRequestError(
            "Give examples, questions that the expert should answer, or at least a description.", param="examples"
        )
    if len(kept) > MOST_EXAMPLES:
        raise InvalidRequestError(f"More than {MOST_EXAMPLES} examples: {len(kept)}.", param="examples")
    if too_long := next((question for question in kept if len(question) > MOST_CHARACTERS), None):
        raise InvalidRequestError(
            f"An example has {len(too_long)} characters, and at most {MOST_CHARACTERS} are read: {too_long[:60]}…",
            param="examples",
        )
    _check_knowledge(proposal.knowledge)
    examples = tuple(TaughtExample(question, each.answer, each.key) for question, each in kept.items())
    return Proposal(name, proposal.title, proposal.description, proposal.instructions, examples, proposal.knowledge)


def _check_knowledge(knowledge: Mapping[str, bytes]) -> None:
    """Read it as it will be read: what cannot be is found before anything is changed."""
    if sum(map(len, knowledge.values())) > MOST_KNOWLEDGE_BYTES:
        raise InvalidRequestError(f"The knowledge is larger than {MOST_KNOWLEDGE_BYTES} bytes.", param="knowledge")
    if knowledge:
        with tempfile.TemporaryDirectory() as temporary:
            for name, content in knowledge.items():
                write_atomically(Path(temporary) / name, content)
            read_corpus(Path(temporary))


def read_examples(path: Path) -> tuple[TaughtExample, ...]:
    """A CSV with a column ``question``, perhaps ``answer`` and ``key``, or else a text with a question a line.

    Raises ``DataError`` that names file and line.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    heading = next(csv.reader(text.splitlines()), [])
    if path.suffix.lower() != ".csv" and "question" not in heading:
        return tuple(TaughtExample(line.strip()) for line in text.splitlines() if line.strip())
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    if "question" not in (rows.fieldnames or ()):
        found = ", ".join(rows.fieldnames or ()) or "nothing"
        raise DataError(f"{path}, line 1: the columns must have a name, and one must be question; found: {found}.")
    try:
        examples = tuple(TaughtExample(*((row.get(column) or "").strip() for column in COLUMNS)) for row in rows)
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}") from error
    if not examples:
        raise DataError(f"{path} has a heading and no questions.")
    return examples


def read_knowledge(folder: Path) -> dict[str, bytes]:
    """The texts below a folder, by their path below it. Raises ``DataError`` when there is none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise DataError(f"{folder} holds no text: put files there that end in {', '.join(SUFFIXES)}.")
    try:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}") from error


def taught(examples: Sequence[str], title: str, description: str) -> list[str]:
    """The questions that the router learns from; without any, what the expert is about."""
    return list(examples) or [f"{title}: {description}"]


def _instructions(title: str) -> str:
    return (
        f"You are an expert in {title.lower()}. Answer the question directly and correctly in one to three short "
        "sentences. If you do not know, say so."
    )


def _csv(examples: Sequence[TaughtExample]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    writer.writerows((example.question, example.answer, example.key) for example in examples)
    return file.getvalue().encode()
