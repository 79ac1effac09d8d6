"""From the raw files to the prepared data: read, check, clean, split, write.

The outputs are ``train_<word>.csv``, ``calibration_<word>.csv`` and ``test_<word>.csv`` for each expert,
``routing_<split>.csv`` for the router, ``quarantine.csv`` and ``duplicates.csv`` with every row that is in none of
them, and ``manifest.json``. The same inputs and seed give the same bytes. Everything is computed before anything is
written, and written to a folder beside the old outputs before it takes their place.
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tqdm import tqdm

from expert_router.artifacts import MANIFEST, load_experts, sha256_of, write_artifact
from expert_router.data.clean import (
    Duplicate,
    Record,
    normalise,
    normalise_key,
    problem_with,
    remove_equal,
    remove_same_wording,
)
from expert_router.data.sources import FORMATS, Columns, Rejected, Row, Table, read_table
from expert_router.data.split import RATIOS, SPLITS, Assignment, Pair, Split, Track, assign, similar_pairs, untracked
from expert_router.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from expert_router.settings import Settings
    from expert_router.types import Expert

T = TypeVar("T")
Kind = Literal["answers", "out_of_scope", "multi_topic", "router_questions"]

SEED = 7
QUARANTINE = "quarantine.csv"
DUPLICATES = "duplicates.csv"
COLUMNS: Mapping[Kind, Columns] = {
    "answers": Columns(("question", "answer", "key", "topic")),
    "out_of_scope": Columns(("question", "subject", "trap")),
    "multi_topic": Columns(("question", "experts"), ("note",)),
    "router_questions": Columns(("question", "experts", "subject", "trap")),
}
_LONGEST_CONTENT = 2_000
_BAR_DELAY_S = 0.5


@dataclass(frozen=True, slots=True)
class InputReport:
    """``rows`` is always ``kept + duplicates + quarantined``; ``splits`` counts the kept ones."""

    path: str
    sha256: str
    rows: int
    kept: int
    duplicates: int
    quarantined: int
    splits: Mapping[Split, int]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What was done. ``counts`` maps each data file to its rows; ``output`` is where they are, unless it ran dry."""

    output: Path
    seed: int
    inputs: tuple[InputReport, ...]
    counts: Mapping[str, int]
    duplicates: tuple[Duplicate, ...]
    quarantined: tuple[Rejected, ...]
    notes: tuple[str, ...]


def prepare(
    settings: Settings,
    *,
    questions: Mapping[str, Path] | None = None,
    raw: Path | None = None,
    output: Path | None = None,
    seed: int = SEED,
    dry_run: bool = False,
    progress: bool = False,
) -> PrepareReport:
    """Prepare all data of the configured experts.

    ``questions`` replaces the file of single experts, ``raw`` the folder of all; ``dry_run`` writes nothing;
    ``progress`` shows bars on stderr. Raises ``DataError`` when a file cannot be used as a whole or the outputs
    cannot be written, ``ConfigError`` for a name that is no expert.
    """
    experts = load_experts(settings.resolve(settings.paths.experts), settings.home)
    data = settings.resolve(settings.paths.data)
    output = output or data / "processed"
    sources, missing = _find_sources(experts, questions or {}, raw, data / "raw", settings.home)
    bars = _Bars(shown=progress)
    tables = [read_table(s.path, COLUMNS[s.kind], s.label) for s in bars(sources, "reading")]
    records, rejected = _check_all(sources, tables, tuple(experts), bars)
    _refuse_useless(sources, records, rejected)
    cleaned = clean(records, bars)
    assignment = assign(cleaned.records, cleaned.pairs, seed)
    quarantined = sorted((*rejected, *cleaned.rejected), key=lambda r: (r.file, r.line))
    files = _data_files(experts, cleaned, assignment)
    report = PrepareReport(
        output=output,
        seed=seed,
        inputs=_input_reports(sources, tables, cleaned, quarantined, assignment),
        counts={name: len(file.rows) for name, file in files.items()},
        duplicates=cleaned.duplicates,
        quarantined=tuple(quarantined),
        notes=(*missing, *_notes_on(assignment)),
    )
    if not dry_run:
        _write(report, files)
    return report


# Inputs


@dataclass(frozen=True, slots=True)
class _Source:
    path: Path
    label: str
    kind: Kind
    expert: str | None = None


def _find_sources(
    experts: Mapping[str, Expert], questions: Mapping[str, Path], raw: Path | None, default_raw: Path, home: Path
) -> tuple[list[_Source], list[str]]:
    """The input files, answered ones first, and notes on what there is none of."""
    if unknown := sorted(set(questions) - set(experts)):
        raise ConfigError(f"There is no expert named {unknown[0]!r}. Known: {', '.join(experts)}.")
    sources: list[_Source] = []
    notes: list[str] = []
    for name, expert in experts.items():
        named = questions.get(name)
        path = named or (raw / expert.questions.name if raw and expert.questions else expert.questions)
        if path is None:
            notes.append(f"the expert {name!r} has no questions: its manifest names no file")
            continue
        found = _existing(path, other_formats=named is None)
        if found is None:
            raise DataError(
                f"{_label(path, home)}: there is no such file. It should hold the questions of the expert {name!r}: "
                f"put it there, or name another with --questions {name}=FILE."
            )
        sources.append(_Source(found, _label(found, home), "answers", name))
    for kind in ("out_of_scope", "multi_topic", "router_questions"):
        if found := _existing((raw or default_raw) / f"{kind}.csv"):
            sources.append(_Source(found, _label(found, home), kind))
        else:
            notes.append(f"there is no {kind}.csv: the routing files have no such questions")
    _refuse_twins([source.label for source in sources])
    return sources, notes


def _existing(path: Path, *, other_formats: bool = True) -> Path | None:
    """The file itself or, where there is none and it was not named outright, one that differs only in its format."""
    candidates = [path, *(path.with_suffix(suffix) for suffix in FORMATS if other_formats)]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _label(path: Path, home: Path) -> str:
    """A name for messages and the manifest that does not depend on where the checkout lies."""
    path = path.resolve()
    home = home.resolve()
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else f"{path.parent.name}/{path.name}"


def _refuse_twins(labels: Sequence[str]) -> None:
    for label, count in Counter(labels).items():
        if count > 1:
            raise DataError(f"{label}: {count} inputs have this name. Each needs a file, and a name, of its own.")


# Rows to records


def _check_all(
    sources: Sequence[_Source], tables: Sequence[Table], experts: Sequence[str], bars: _Bars
) -> tuple[list[Record], list[Rejected]]:
    rows = [(source, row) for source, table in zip(sources, tables, strict=True) for row in table.rows]
    records: list[Record] = []
    rejected = [row for table in tables for row in table.rejected]
    for source, row in bars(rows, "checking"):
        record = _record(source, row)
        if problem := problem_with(record, experts):
            rejected.append(record.reject(problem))
        else:
            records.append(record)
    return records, rejected


def _record(source: _Source, row: Row) -> Record:
    values = {name: normalise(text) for name, text in row.values.items() if name not in {"answer", "key"}}
    known: dict[str, Any]
    match source.kind:
        case "answers":
            known = {
                "experts": (source.expert,),
                "subject": values["topic"],
                "answer": normalise(row.values["answer"], keep_lines=True),
                "key": normalise_key(row.values["key"]),
                "answered": True,
            }
        case "out_of_scope":
            known = {"experts": (), "subject": values["subject"], "trap": values["trap"].casefold()}
        case "multi_topic":
            known = {"experts": _names(values["experts"]), "decides": True}
        case "router_questions":
            known = {
                "experts": _names(values["experts"]),
                "subject": values["subject"],
                "trap": values["trap"].casefold(),
                "teaches": True,
            }
    return Record(
        file=row.file,
        line=row.line,
        content=row.content,
        source=source.path.stem,
        question=values["question"],
        **known,
    )


def _names(joined: str) -> tuple[str, ...]:
    names = (name.strip().casefold() for name in joined.split("|"))
    return tuple(dict.fromkeys(name for name in names if name))


def _refuse_useless(sources: Sequence[_Source], records: Sequence[Record], rejected: Sequence[Rejected]) -> None:
    usable = {record.file for record in records}
    for source in sources:
        problems = [r for r in rejected if r.file == source.label]
        if source.label in usable or not (problems or source.expert):
            continue
        if not problems:
            raise DataError(f"{source.label}: has a header and no rows, but the expert {source.expert!r} needs some.")
        first = problems[0]
        raise DataError(
            f"{source.label}: none of its {len(problems)} rows can be used. The first: {first.file}:{first.line}: "
            f"{first.reason}."
        )


# Records to distinct records


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What stays, the similar ``pairs`` in it (indices into ``records``), and all that does not stay."""

    records: tuple[Record, ...]
    pairs: tuple[Pair, ...]
    duplicates: tuple[Duplicate, ...]
    rejected: tuple[Rejected, ...]


def clean(records: Sequence[Record], track: Track = untracked) -> Cleaned:
    """Settle conflicts and remove duplicates. The first of several equal records stays, so the order matters."""
    distinct, equal, rejected = remove_equal(records)
    pairs = similar_pairs([record.words for record in distinct], track)
    kept, near = remove_same_wording(distinct, ((p.first, p.second) for p in pairs if p.same_wording))
    position = {old: new for new, old in enumerate(kept)}
    remaining = (
        Pair(position[pair.first], position[pair.second], pair.similarity, pair.same_wording)
        for pair in pairs
        if pair.first in position and pair.second in position
    )
    return Cleaned(tuple(distinct[i] for i in kept), tuple(remaining), (*equal, *near), tuple(rejected))


# The report


def _input_reports(
    sources: Sequence[_Source],
    tables: Sequence[Table],
    cleaned: Cleaned,
    quarantined: Sequence[Rejected],
    assignment: Assignment,
) -> tuple[InputReport, ...]:
    duplicates = Counter(duplicate.record.file for duplicate in cleaned.duplicates)
    bad = Counter(row.file for row in quarantined)
    kept = Counter(record.file for record in cleaned.records)
    placed = Counter(zip((record.file for record in cleaned.records), assignment.splits, strict=True))
    return tuple(
        InputReport(
            path=source.label,
            sha256=sha256_of(source.path),
            rows=len(table.rows) + len(table.rejected),
            kept=kept[source.label],
            duplicates=duplicates[source.label],
            quarantined=bad[source.label],
            splits={split: placed[source.label, split] for split in SPLITS},
            notes=table.notes,
        )
        for source, table in zip(sources, tables, strict=True)
    )


def _notes_on(assignment: Assignment) -> list[str]:
    if not assignment.apart:
        return []
    note = (
        f"{assignment.apart} pairs of similar questions are in different splits: families of more than "
        f"{assignment.largest_family} alike were divided"
    )
    return [note]


# Outputs


_Rows = list[tuple[str | int, ...]]


def _data_files(experts: Mapping[str, Expert], cleaned: Cleaned, assignment: Assignment) -> dict[str, _CsvFile]:
    placed = list(zip(cleaned.records, assignment.splits, strict=True))
    files: dict[str, _CsvFile] = {}
    for split in SPLITS:
        for name, expert in experts.items():
            if expert.questions is None and not any(r.answered and r.experts == (name,) for r, _ in placed):
                continue
            own = [r for r, s in placed if s == split and r.answered and r.experts == (name,)]
            rows: _Rows = [(r.question, r.answer, r.key, r.subject) for r in own]
            files[f"{split}_{expert.split_name}.csv"] = _CsvFile(COLUMNS["answers"].required, rows)
        routed: _Rows = [
            (r.question, "|".join(r.experts), r.source, r.subject, r.trap) for r, s in placed if s == split
        ]
        files[f"routing_{split}.csv"] = _CsvFile(("query", "experts", "source", "subject", "trap"), routed)
    return files


@dataclass(frozen=True, slots=True)
class _CsvFile:
    columns: tuple[str, ...]
    rows: _Rows

    def encoded(self) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue().encode()


def _write(report: PrepareReport, data_files: Mapping[str, _CsvFile]) -> None:
    """Write everything beside the old files, then rename: a full disk leaves the old ones as they were.

    The manifest takes its place last and pins every file, so that a crash between two renames is noticed.
    """
    files = {**data_files, QUARANTINE: _quarantine(report), DUPLICATES: _duplicates(report)}
    encoded = {name: file.encoded() for name, file in files.items()}
    try:
        report.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=report.output, prefix=".new-") as staging:
            write_artifact(Path(staging), encoded, _about(report))
            for name in (*encoded, MANIFEST):
                (Path(staging) / name).replace(report.output / name)
    except OSError as error:
        raise DataError(f"{report.output}: cannot be written: {error.strerror or error}.") from error


def _quarantine(report: PrepareReport) -> _CsvFile:
    rows: _Rows = [(r.file, r.line, r.reason, _shorten(r.content)) for r in report.quarantined]
    return _CsvFile(("file", "line", "reason", "content"), rows)


def _duplicates(report: PrepareReport) -> _CsvFile:
    rows: _Rows = [
        (d.record.file, d.record.line, d.kind, d.kept.file, d.kept.line, _shorten(d.record.content))
        for d in report.duplicates
    ]
    return _CsvFile(("file", "line", "kind", "kept_file", "kept_line", "content"), rows)


def _about(report: PrepareReport) -> dict[str, Any]:
    """The manifest but for the outputs' hashes: no time and no absolute path, so that a rerun gives the same bytes."""
    return {
        "kind": "prepared_data",
        "seed": report.seed,
        "ratios": dict(RATIOS),
        "inputs": [asdict(each) for each in report.inputs],
        "rows": dict(report.counts),
        "duplicates_removed": dict(Counter(duplicate.kind for duplicate in report.duplicates)),
        "quarantined": len(report.quarantined),
        "notes": list(report.notes),
    }


def _shorten(content: str) -> str:
    if len(content) <= _LONGEST_CONTENT:
        return content
    return f"{content[:_LONGEST_CONTENT]}… ({len(content):,} characters)"


class _Bars:
    """Progress on stderr, one bar a step; a step that takes no time shows none."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown

    def __call__(self, items: Sequence[T], what: str) -> Iterable[T]:
        bar: Iterable[T] = tqdm(items, what, disable=not self._shown, delay=_BAR_DELAY_S, leave=False)
        return bar
