"""The prepared data as files, and how they take the place of the old ones."""

from __future__ import annotations

import csv
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expert_router.artifacts import MANIFEST, write_artifact
from expert_router.data.inputs import COLUMNS
from expert_router.data.split import SPLITS
from expert_router.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from expert_router.data.clean import Duplicate, Record
    from expert_router.data.sources import Rejected
    from expert_router.data.split import Split
    from expert_router.types import Expert

QUARANTINE = "quarantine.csv"
DUPLICATES = "duplicates.csv"
_LONGEST_CONTENT = 2_000

_Rows = list[tuple[str | int, ...]]


@dataclass(frozen=True, slots=True)
class CsvFile:
    columns: tuple[str, ...]
    rows: _Rows

    def encoded(self) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue().encode()


def data_files(experts: Mapping[str, Expert], records: Sequence[Record], splits: Sequence[Split]) -> dict[str, CsvFile]:
    """By name: one for each expert and one for the router, of each split; ``splits`` has one entry per record."""
    placed = list(zip(records, splits, strict=True))
    files: dict[str, CsvFile] = {}
    for split in SPLITS:
        for name, expert in experts.items():
            if expert.questions is None and not any(r.answered and r.experts == (name,) for r, _ in placed):
                continue
            own = [r for r, s in placed if s == split and r.answered and r.experts == (name,)]
            rows: _Rows = [(r.question, r.answer, r.key, r.subject) for r in own]
            files[f"{split}_{expert.split_name}.csv"] = CsvFile(COLUMNS["answers"].required, rows)
        routed: _Rows = [
            (r.question, "|".join(r.experts), r.source, r.subject, r.trap) for r, s in placed if s == split
        ]
        files[f"routing_{split}.csv"] = CsvFile(("query", "experts", "source", "subject", "trap"), routed)
    return files


def left_out_files(quarantined: Iterable[Rejected], duplicates: Iterable[Duplicate]) -> dict[str, CsvFile]:
    """By name: every row that is in no data file, and why."""
    bad: _Rows = [(r.file, r.line, r.reason, _shorten(r.content)) for r in quarantined]
    twice: _Rows = [
        (d.record.file, d.record.line, d.kind, d.kept.file, d.kept.line, _shorten(d.record.content)) for d in duplicates
    ]
    return {
        QUARANTINE: CsvFile(("file", "line", "reason", "content"), bad),
        DUPLICATES: CsvFile(("file", "line", "kind", "kept_file", "kept_line", "content"), twice),
    }


def _shorten(content: str) -> str:
    if len(content) <= _LONGEST_CONTENT:
        return content
    return f"{content[:_LONGEST_CONTENT]}… ({len(content):,} characters)"


def write_files(folder: Path, files: Mapping[str, CsvFile], about: dict[str, Any]) -> None:
    """Write everything beside the old files, then rename: a full disk leaves the old ones as they were.

    The manifest, ``about`` and the files' hashes, takes its place last, so that a crash between two renames is noticed.
    Raises ``DataError`` where the folder cannot be written.
    """
    encoded = {name: file.encoded() for name, file in files.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as staging:
            write_artifact(Path(staging), encoded, about)
            for name in (*encoded, MANIFEST):
                (Path(staging) / name).replace(folder / name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}.") from error
