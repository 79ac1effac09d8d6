"""The raw files that there are, and what their rows mean: records that can be used, and rows that cannot."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from expert_router.data.clean import Record, normalise, normalise_key, problem_with
from expert_router.data.sources import FORMATS, Columns, Rejected, Row, Table
from expert_router.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from expert_router.data.similar import Track
    from expert_router.types import Expert

Kind = Literal["answers", "out_of_scope", "multi_topic", "router_questions"]

COLUMNS: Mapping[Kind, Columns] = {
    "answers": Columns(("question", "answer", "key", "topic")),
    "out_of_scope": Columns(("question", "subject", "trap")),
    "multi_topic": Columns(("question", "experts"), ("note",)),
    "router_questions": Columns(("question", "experts", "subject", "trap")),
}


@dataclass(frozen=True, slots=True)
class Source:
    """A raw file; ``label`` is what messages and the manifest call it, ``expert`` who answers all of its questions."""

    path: Path
    label: str
    kind: Kind
    expert: str | None = None


def find_sources(
    experts: Mapping[str, Expert], questions: Mapping[str, Path], raw: Path | None, default_raw: Path, home: Path
) -> tuple[list[Source], list[str]]:
    """The input files, answered ones first, and notes on what there is none of."""
    if unknown := sorted(set(questions) - set(experts)):
        raise ConfigError(f"There is no expert named {unknown[0]!r}. Known: {', '.join(experts)}.")
    sources: list[Source] = []
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
        sources.append(Source(found, _label(found, home), "answers", name))
    for kind in ("out_of_scope", "multi_topic", "router_questions"):
        if found := _existing((raw or default_raw) / f"{kind}.csv"):
            sources.append(Source(found, _label(found, home), kind))
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


def check_all(
    sources: Sequence[Source], tables: Sequence[Table], experts: Sequence[str], track: Track
) -> tuple[list[Record], list[Rejected]]:
    """The records that can be used, and all rows that cannot; ``experts`` are the names that there are."""
    rows = [(source, row) for source, table in zip(sources, tables, strict=True) for row in table.rows]
    records: list[Record] = []
    rejected = [row for table in tables for row in table.rejected]
    for source, row in track(rows, "checking"):
        record = _record(source, row)
        if problem := problem_with(record, experts):
            rejected.append(record.reject(problem))
        else:
            records.append(record)
    return records, rejected


def _record(source: Source, row: Row) -> Record:
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


def refuse_useless(sources: Sequence[Source], records: Sequence[Record], rejected: Sequence[Rejected]) -> None:
    """Raises ``DataError`` for a file of which nothing can be used, and for an expert's that is empty."""
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
