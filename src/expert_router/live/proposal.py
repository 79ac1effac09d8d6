"""A new expert as somebody proposes it: checked, and written as the folder that an expert is."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expert_router.artifacts import load_expert, within, write_atomically
from expert_router.catalogue import EXAMPLES_FILE, KNOWLEDGE_FOLDER, taught
from expert_router.errors import DataError, InvalidRequestError
from expert_router.knowledge.corpus import corpus_files, read_corpus, text_of
from expert_router.types import AUTO, GENERAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

LONGEST_NAME = 64
RESERVED = {AUTO, GENERAL, "none"}
"""``none`` is what scores call no expert."""
MOST_EXAMPLES = 10_000
MOST_CHARACTERS = 4_000
"""Of one example, and of each of its fields."""
MOST_EXAMPLES_BYTES = MOST_KNOWLEDGE_BYTES = 64 * 1024**2
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
        """Nothing stays of an expert that was there. Raises ``InvalidRequestError`` for what could not be served."""
        shutil.rmtree(folder, ignore_errors=True)
        self._write(folder)
        expert = load_expert(folder / "expert.toml", folder)
        if expert.knowledge is None:
            return
        try:
            read_corpus(expert.knowledge)
        except DataError as error:
            why = error.message.replace(f"{folder}/", "")
            raise InvalidRequestError(f"The knowledge cannot be read: {why}", param="knowledge") from error

    def _write(self, folder: Path) -> None:
        manifest: dict[str, Any] = {
            "name": self.name,
            "title": self.spoken,
            "description": self.description or f"Questions about {self.spoken.lower()}.",
            "instructions": self.instructions or _instructions(self.spoken),
            "examples": [example.question for example in self.examples[:SHOWN_EXAMPLES]],
        }
        lines = [f"{key} = {_toml(value)}" for key, value in manifest.items()]
        if self.knowledge:
            lines += ["", "[data]", f'knowledge = "{KNOWLEDGE_FOLDER}"']
        write_atomically(folder / "expert.toml", ("\n".join(lines) + "\n").encode())
        write_atomically(folder / EXAMPLES_FILE, _csv(self.examples))
        for name, content in self.knowledge.items():
            write_atomically(folder / KNOWLEDGE_FOLDER / name, content)


def check(proposal: Proposal, known: Iterable[str]) -> Proposal:
    """The proposal without doubled and empty examples, nor space around its texts.

    Of a question that is there twice the last one counts. Raises ``InvalidRequestError`` that says what to change.
    """
    _check_name(proposal.name, known)
    title, description, instructions = (
        _text(getattr(proposal, field), field) for field in ("title", "description", "instructions")
    )
    examples = _checked(proposal.examples)
    if not examples and not description:
        raise InvalidRequestError(
            "Give examples, questions that the expert should answer, or at least a description.", param="examples"
        )
    if len(description) > MOST_CHARACTERS:
        raise InvalidRequestError(
            f"The description has {len(description)} characters, and at most {MOST_CHARACTERS} are read.",
            param="description",
        )
    if sum(map(len, proposal.knowledge.values())) > MOST_KNOWLEDGE_BYTES:
        raise InvalidRequestError(f"The knowledge is larger than {MOST_KNOWLEDGE_BYTES} bytes.", param="knowledge")
    for file in proposal.knowledge:
        try:
            within(Path(KNOWLEDGE_FOLDER), file)
        except ValueError as error:
            raise InvalidRequestError(str(error), param="knowledge") from error
    return Proposal(proposal.name, title, description, instructions, examples, proposal.knowledge)


def _check_name(name: str, known: Iterable[str]) -> None:
    if name in RESERVED or len(name) > LONGEST_NAME or not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise InvalidRequestError(
            f"The name {name[:LONGEST_NAME]!r} must be lower-case letters, digits and _, at most {LONGEST_NAME} of "
            f"them, begin with a letter, and be none of {', '.join(sorted(RESERVED))}.",
            param="name",
        )
    if name in set(known):
        raise InvalidRequestError(
            f"There is an expert {name!r} already. "
            "Remove it first, or replace it (`--replace`, or `replace` over HTTP).",
            param="name",
        )


def _checked(examples: Iterable[TaughtExample]) -> tuple[TaughtExample, ...]:
    kept = {}
    for example in examples:
        texts = [_text(text, "examples") for text in (example.question, example.answer, example.key)]
        longest = max(texts, key=len)
        if len(longest) > MOST_CHARACTERS:
            raise InvalidRequestError(
                f"An example has {len(longest)} characters, and at most {MOST_CHARACTERS} are read: {longest[:60]}…",
                param="examples",
            )
        if texts[0]:
            kept[texts[0]] = TaughtExample(*texts)
    if len(kept) > MOST_EXAMPLES:
        raise InvalidRequestError(f"More than {MOST_EXAMPLES} examples: {len(kept)}.", param="examples")
    return tuple(kept.values())


def _text(text: str, param: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(f"Not UTF-8 text: {text[:60]!r}.", param=param) from None
    return text.strip()


def read_examples(path: Path) -> tuple[TaughtExample, ...]:
    """A CSV with a column ``question``, perhaps ``answer`` and ``key``, or else a text with a question a line.

    Raises ``DataError`` that names file and line.
    """
    text = _bounded_text(path)
    lines = [line.strip() for line in re.split(r"\r\n?|\n", text)]  # splitlines would also cut at U+2028
    if path.suffix.lower() == ".csv" or "question" in lines[0].replace('"', "").split(","):
        examples = tuple(_from_csv(path, text))
    else:
        examples = tuple(TaughtExample(line) for line in lines if line)
    if not examples:
        raise DataError(f"{path} has no questions.")
    return examples


def _from_csv(path: Path, text: str) -> Iterator[TaughtExample]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        heading = rows.fieldnames or ()
        if "question" not in heading:
            raise DataError(
                f"{path}, line 1: the columns must have a name, separated by commas, and one must be question; found: "
                f"{', '.join(heading) or 'nothing'}."
            )
        for row in rows:
            if None in row:
                raise DataError(
                    f"{path}, line {rows.reader.line_num}: more fields than columns. Put what has commas in double "
                    "quotes."
                )
            texts = [(row.get(column) or "").strip() for column in COLUMNS]
            if texts[0]:
                yield TaughtExample(*texts)
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.reader.line_num}: {error}") from error


def _bounded_text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_EXAMPLES_BYTES:
            raise DataError(f"{path} is larger than {MOST_EXAMPLES_BYTES} bytes.")
        return text_of(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def read_knowledge(folder: Path) -> dict[str, bytes]:
    """The texts below a folder, by their path below it. Raises ``DataError`` when there is none that can be read."""
    read_corpus(folder)
    try:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in corpus_files(folder)}
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}") from error


def _instructions(title: str) -> str:
    return (
        f"You are an expert in {title.lower()}. Answer the question directly and correctly in one to three short "
        "sentences. If you do not know, say so."
    )


def _toml(value: str | list[str]) -> str:
    """A TOML string is a JSON string but for DEL, which it cannot hold as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _csv(examples: Sequence[TaughtExample]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    writer.writerows((example.question, example.answer, example.key) for example in examples)
    return file.getvalue().encode()
