"""Reading question files as people really have them: CSV of any dialect, JSON lines, Parquet.

A file becomes rows of text that know their file and line. What is wrong with a whole file is a ``DataError`` that
names it; what is wrong with one row is a ``Rejected`` that names its line and keeps its content, and the reading goes
on. What was guessed (an encoding, a delimiter) is said in a note. This module knows nothing of what a column means.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expert_router.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

DELIMITERS = (",", ";", "\t", "|")
_BOMS = (  # UTF-32 first: its little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
_BINARY = {
    b"PK\x03\x04": "an Excel or zip file",
    b"\xd0\xcf\x11\xe0": "an Excel file",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a gzip file",
}
_LONGEST_SHOWN_NAME = 40


@dataclass(frozen=True, slots=True)
class Row:
    """``line`` is where the row starts in a text file, counted from 1; in Parquet it is the row's number.

    ``values`` has every required and optional column (empty text where there is none); ``content`` is the raw row.
    """

    file: str
    line: int
    values: Mapping[str, str]
    content: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used, and why."""

    file: str
    line: int
    reason: str
    content: str


@dataclass(frozen=True, slots=True)
class Table:
    label: str
    rows: tuple[Row, ...]
    rejected: tuple[Rejected, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Columns:
    """What a file must have and may have; further columns are left aside and named in a note."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def __contains__(self, name: str) -> bool:
        return name in self.required or name in self.optional


def read_table(path: Path, columns: Columns, label: str | None = None) -> Table:
    """Read one file by its suffix; ``label`` is the name used in messages and rows.

    Raises ``DataError`` when the file cannot be read, is empty, is of another kind or lacks a required column.
    """
    label = label or str(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{label}: the suffix {path.suffix!r} is not known. Known: {', '.join(FORMATS)}.")
    try:
        return reader(path, columns, label)
    except OSError as error:
        raise DataError(f"{label}: cannot be read: {error.strerror or error}.") from error


# CSV


def _read_csv(path: Path, columns: Columns, label: str) -> Table:
    text, notes = _read_text(path, columns, label)
    lines = list(io.StringIO(text, newline=""))
    header = _find_header(lines, columns, label)
    rows: list[Row] = []
    rejected: list[Rejected] = []
    absent = dict.fromkeys(columns.optional, "")
    for begin, end, cells, invalid in _records(lines, header.delimiter, header.end):
        content = "".join(lines[begin:end]).rstrip("\r\n")
        if not content.strip():
            continue
        if problem := invalid or _ragged(cells, len(header.names)):
            rejected.append(Rejected(label, begin + 1, problem, content))
        else:
            values = absent | {name: cells[at] for name, at in header.positions.items()}
            rows.append(Row(label, begin + 1, values, content))
    if header.delimiter != ",":
        notes.append(f"the delimiter is {header.delimiter!r}")
    notes += _notes_on_columns(header.names, columns) + _note_if_empty(rows, rejected)
    return Table(label, tuple(rows), tuple(rejected), tuple(notes))


@dataclass(frozen=True, slots=True)
class _Header:
    names: tuple[str, ...]
    delimiter: str
    end: int
    """Index of the first line after it."""
    positions: Mapping[str, int]
    """Where each required and optional column stands; a missing optional one is not there."""


def _find_header(lines: Sequence[str], columns: Columns, label: str) -> _Header:
    start = next((i for i, line in enumerate(lines) if line.strip()), 0)
    if lines[start].lower().startswith("sep=") and start + 1 < len(lines):  # what Excel writes for its own use
        start += 1
    candidates = [_header_with(lines, start, delimiter, columns) for delimiter in DELIMITERS]
    best = max(candidates, key=lambda header: (sum(n in columns for n in header.names), len(header.names)))
    _require(best.names, columns, label, start + 1)
    return best


def _header_with(lines: Sequence[str], start: int, delimiter: str, columns: Columns) -> _Header:
    _, end, cells, _ = next(_records(lines, delimiter, start))
    names = tuple(_column(cell) for cell in cells or lines[start].split(delimiter))
    return _Header(names, delimiter, end, {name: i for i, name in enumerate(names) if name in columns})


def _records(lines: Sequence[str], delimiter: str, start: int) -> Iterator[tuple[int, int, list[str], str | None]]:
    """Yield (first line, line after the last, cells, problem), lines counted from 0.

    A record that is not valid CSV costs its first line only: a forgotten closing quote must not swallow the rows
    after it, so the parser starts again on the next line. The csv module's field limit bounds how far it can look.
    """
    while start < len(lines):
        reader = csv.reader((lines[i] for i in range(start, len(lines))), delimiter=delimiter, strict=True)
        begin = start
        try:
            for cells in reader:
                end = start + reader.line_num
                yield begin, end, cells, None
                begin = end
        except csv.Error as error:
            yield begin, begin + 1, [], f"not valid CSV: {error}"
            start = begin + 1
        else:
            return


def _ragged(cells: Sequence[str], width: int) -> str | None:
    if len(cells) == width or (len(cells) > width and not any(cells[width:])):
        return None
    return f"the row has {len(cells)} cells where the header has {width}"


# JSON lines


def _read_jsonl(path: Path, columns: Columns, label: str) -> Table:
    text, notes = _read_text(path, columns, label)
    lines = io.StringIO(text, newline="")
    numbered = ((number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip())
    table = _from_mappings(((number, line, _parse_json(line)) for number, line in numbered), columns, label)
    return Table(label, table.rows, table.rejected, (*notes, *table.notes))


def _parse_json(line: str) -> dict[str, Any] | str:
    """An object, or what is wrong with the line."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not valid JSON: {error}"
    return value if isinstance(value, dict) else "the line is not a JSON object"


# Parquet


def _read_parquet(path: Path, columns: Columns, label: str) -> Table:
    try:
        import pyarrow as pa  # an extra, and slow to import
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{label}: reading Parquet needs pyarrow. Install it with: pip install 'expert-router[parquet]'."
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            names = [_column(name) for name in file.schema_arrow.names]
            _require(names, columns, label, None)
            content = file.read()
    except pa.ArrowException as error:
        raise DataError(f"{label}: is not a Parquet file that can be read: {error}") from error
    numbered = (
        (n, json.dumps(row, default=str, ensure_ascii=False), row) for n, row in enumerate(content.to_pylist(), 1)
    )
    return _from_mappings(numbered, columns, label)


# Shared


def _from_mappings(numbered: Iterable[tuple[int, str, dict[str, Any] | str]], columns: Columns, label: str) -> Table:
    """Rows from (line, raw content, object or what is wrong with it)."""
    rows: list[Row] = []
    rejected: list[Rejected] = []
    seen: Counter[str] = Counter()
    for line, content, value in numbered:
        if isinstance(value, str):
            rejected.append(Rejected(label, line, value, content))
            continue
        named = {_column(name): cell for name, cell in value.items()}
        seen.update(named.keys())
        try:
            rows.append(Row(label, line, _values(named, columns), content))
        except ValueError as error:
            rejected.append(Rejected(label, line, str(error), content))
    if seen:
        _require(tuple(seen), columns, label, None)
    notes = _notes_on_columns(tuple(seen), columns) + _note_if_empty(rows, rejected)
    return Table(label, tuple(rows), tuple(rejected), tuple(notes))


def _values(named: Mapping[str, Any], columns: Columns) -> dict[str, str]:
    """Raises ``ValueError`` when a required column is not there or a value is not text, a number or a list of them."""
    if missing := [name for name in columns.required if name not in named]:
        raise ValueError(f"the row lacks {', '.join(missing)}")
    return {name: _text_of(name, named.get(name)) for name in (*columns.required, *columns.optional)}


def _text_of(name: str, value: object) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            pass
        case float() if value.is_integer():  # a year in a table with gaps: 1908.0
            return str(int(value))
        case int() | float():
            return str(value)
        case list():
            return "|".join(_text_of(name, item) for item in value)
    raise ValueError(f"{name} holds {type(value).__name__}, not text")


def _read_text(path: Path, columns: Columns, label: str) -> tuple[str, list[str]]:
    """The file's text without byte order mark and NUL characters, and notes on what had to be guessed."""
    data = path.read_bytes()
    for magic, kind in _BINARY.items():
        if data.startswith(magic):
            raise DataError(f"{label}: is {kind}, not text. Save it as CSV with UTF-8, or give it its own suffix.")
    text, notes = _decode(data, label)
    if nuls := text.count("\0"):
        line = text[: text.index("\0")].count("\n") + 1
        text = text.replace("\0", "")
        notes.append(f"{nuls} NUL characters were removed, the first in line {line}")
    if not text.strip():
        raise DataError(f"{label}: the file is empty. Expected the columns {', '.join(columns.required)}.")
    return text, notes


def _decode(data: bytes, label: str) -> tuple[str, list[str]]:
    mark, encoding = next(((m, e) for m, e in _BOMS if data.startswith(m)), (b"", "utf-8"))
    data = data[len(mark) :]
    notes = [] if encoding == "utf-8" else [f"the file is in {encoding.upper()}"]
    try:
        return data.decode(encoding), notes
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise DataError(f"{label}: begins like {encoding.upper()} but is not: {error}.") from error
    return _decode_by_line(data)


def _decode_by_line(data: bytes) -> tuple[str, list[str]]:
    """Line by line, so that one bad byte in a UTF-8 file does not garble the other lines."""
    lines: list[str] = []
    guessed: list[int] = []
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            lines.append(_decode_latin(line))
            guessed.append(number)
    plural = "line is" if len(guessed) == 1 else "lines are"
    note = f"{len(guessed)} {plural} not UTF-8 (the first is {guessed[0]}): read as Latin-1 (Windows-1252)"
    return "".join(lines), [note]


def _decode_latin(line: bytes) -> str:
    try:
        return line.decode("cp1252")
    except UnicodeDecodeError:  # five bytes have no meaning there
        return line.decode("latin-1")


def _column(name: str) -> str:
    return " ".join(name.casefold().split())


def _require(found: Iterable[str], columns: Columns, label: str, line: int | None) -> None:
    counts = Counter(found)
    where = f"{label}:{line}" if line else label
    if missing := [name for name in columns.required if name not in counts]:
        shown = ", ".join(repr(_shorten(name)) for name in counts)
        raise DataError(
            f"{where}: the column{'s' if len(missing) > 1 else ''} {', '.join(missing)} not found. "
            f"Needed: {', '.join(columns.required)}. Found: {shown}."
        )
    if twice := [name for name, count in counts.items() if count > 1 and name in columns]:
        raise DataError(f"{where}: the column {twice[0]} is there {counts[twice[0]]} times.")


def _shorten(name: str) -> str:
    return name if len(name) <= _LONGEST_SHOWN_NAME else name[:_LONGEST_SHOWN_NAME] + "…"


def _notes_on_columns(names: Sequence[str], columns: Columns) -> list[str]:
    extra = [repr(_shorten(name)) for name in names if name and name not in columns]
    return [f"columns left aside: {', '.join(extra)}"] if extra else []


def _note_if_empty(rows: Sequence[Row], rejected: Sequence[Rejected]) -> list[str]:
    return [] if rows or rejected else ["the file has a header and no rows"]


_READERS: dict[str, Callable[[Path, Columns, str], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".txt": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
FORMATS = tuple(_READERS)
