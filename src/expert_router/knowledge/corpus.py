"""An expert's own texts to passages: Markdown, plain text, or PDF, cut where the author cut them.

A heading of Markdown starts a passage and names it; paragraphs of plain text and pages of PDF are gathered up to
``TARGET_WORDS``. What is longer is cut between sentences, so that a prompt holds several passages.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from expert_router.errors import DataError
from expert_router.types import Passage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUFFIXES = (".md", ".markdown", ".txt", ".pdf")
TARGET_WORDS = 120
MOST_BYTES = 64 * 1024**2
"""Of one file."""
MAX_WORDS = 200
"""A paragraph up to this length stays whole."""

_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(\S.*)$")
_CLOSING_HASHES = re.compile(r"[ \t]+#+[ \t]*$")
_FENCE = re.compile(r"^ {0,3}(`{3,}(?=[^`]*$)|~{3,})")
# An initial, a title or a number's abbreviation is no end: "J. Allan Hobson", "St. Louis", "No. 1".
_SENTENCE_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))(?<!\b[A-Z]\.)(?<!\b(?:Dr|Mr|St)\.)(?<!\bMrs\.)(?!(?<=\bNo\.)\s+\d)\s+(?=[\"'(\[]?[A-Z0-9])"
)
# Emphasis stands around words: the stars of "2*3*4" and the lines of "snake_case_name" belong to the text.
_MARKUP = (
    (re.compile(r"!?\[([^\[\]]*)\]\((?:[^()]|\([^()]*\))*\)"), r"\1"),
    (re.compile(r"(?<!\w)[*_`]{1,3}(\S(?:.{0,300}?\S)?)[*_`]{1,3}(?!\w)"), r"\1"),
)


def read_corpus(folder: Path) -> list[Passage]:
    """Every passage below ``folder``, in the order of the files' names. Raises ``DataError`` when there is none."""
    if not folder.is_dir():
        raise DataError(f"There is no folder of knowledge at {folder}.")
    files = corpus_files(folder)
    for path in files:
        _check_file(path, folder)
    passages = [passage for path in files for passage in _read_file(path, path.relative_to(folder).as_posix())]
    if not passages:
        raise DataError(f"{folder} holds no text: put files there that end in {', '.join(SUFFIXES)}.")
    return passages


def corpus_files(folder: Path) -> list[Path]:
    """The files below ``folder`` that are read, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _check_file(path: Path, folder: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{path} leads out of {folder}: put a copy there instead of the link.")
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path} is larger than {MOST_BYTES} bytes: split it.")


def text_of(path: Path) -> str:
    """Raises ``DataError`` that names the line which is not UTF-8, and ``OSError``."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text. Save the file as UTF-8.") from error


def sentences(text: str) -> list[str]:
    """The text's sentences, without the space between them."""
    return [sentence for sentence in _SENTENCE_END.split(text) if sentence]


def _read_file(path: Path, name: str) -> list[Passage]:
    suffix = path.suffix.lower()
    if suffix == ".pdf":
        titled = _pdf_pages(path)
    elif suffix == ".txt":
        titled = iter([(_spoken(path.stem), text_of(path))])
    else:
        titled = _markdown_sections(text_of(path), _spoken(path.stem))
    pieces = [(title, piece) for title, text in titled for piece in _cut(text)]
    return [Passage(f"{name}#{number}", title, text, name) for number, (title, text) in enumerate(pieces, start=1)]


def _spoken(name: str) -> str:
    """A file's name as words, which a question's words can match."""
    return name.replace("-", " ").replace("_", " ")


def _markdown_sections(text: str, title: str) -> Iterator[tuple[str, str]]:
    """A heading and the text below it, up to the next one; the text before the first has the file's name."""
    lines: list[str] = []
    fence = ""
    for line in text.splitlines():
        fence = _fence_after(line, fence)
        heading = None if fence else _HEADING.match(line)
        if heading is None:
            lines.append(line)
            continue
        yield title, "\n".join(lines)
        title, lines = _plain(_CLOSING_HASHES.sub("", heading.group(1))), []
    yield title, "\n".join(lines)


def _fence_after(line: str, fence: str) -> str:
    """The marks that opened the block of code in which the next line stands; empty outside of one."""
    if fence:
        marks = line.strip()
        return "" if marks.startswith(fence) and not marks.strip(fence[0]) else fence
    opening = _FENCE.match(line)
    return opening.group(1) if opening else ""


def _pdf_pages(path: Path) -> Iterator[tuple[str, str]]:
    try:
        from pypdf import PdfReader  # noqa: PLC0415 - only who has PDF files needs it
    except ImportError as error:
        raise DataError(f"Reading {path} needs one more package: pip install 'expert-router[pdf]'") from error
    try:
        for number, page in enumerate(PdfReader(path).pages, start=1):
            yield f"{_spoken(path.stem)}, page {number}", page.extract_text()
    except Exception as error:  # of a damaged file the library raises whatever it stumbles over
        raise DataError(f"{path} is not a readable PDF file: {error}") from error


def _cut(text: str) -> Iterator[str]:
    """Pieces of about ``TARGET_WORDS`` words, cut between paragraphs where possible, else between sentences."""
    piece: list[str] = []
    words = 0
    for part in _parts(text):
        count = len(part.split())
        if piece and words + count > TARGET_WORDS:
            yield " ".join(piece)
            piece, words = [], 0
        piece.append(part)
        words += count
    if piece:
        yield " ".join(piece)


def _parts(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        plain = _plain(" ".join(paragraph.split()))
        if len(plain.split()) <= MAX_WORDS:
            if plain:
                yield plain
        else:
            for sentence in sentences(plain):
                words = sentence.split()  # what has no sentences, a list or a table, is cut between words
                yield from (" ".join(words[n : n + MAX_WORDS]) for n in range(0, len(words), MAX_WORDS))


def _plain(text: str) -> str:
    """Without the commonest marks of Markdown: links, emphasis, code."""
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip()
