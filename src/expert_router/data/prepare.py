"""From the raw files to the prepared data: read, check, clean, split, write.

The outputs are ``train_<word>.csv``, ``calibration_<word>.csv`` and ``test_<word>.csv`` for each expert,
``routing_<split>.csv`` for the router, ``quarantine.csv`` and ``duplicates.csv`` with every row that is in none of
them, and ``manifest.json``. The same inputs and seed give the same bytes. Everything is computed before anything is
written, and written to a folder beside the old outputs before it takes their place.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from expert_router.artifacts import load_experts, sha256_of
from expert_router.data.clean import remove_equal, remove_same_wording
from expert_router.data.inputs import COLUMNS, check_all, find_sources, refuse_useless
from expert_router.data.outputs import data_files, left_out_files, write_files
from expert_router.data.similar import Pair, similar_pairs, untracked
from expert_router.data.sources import read_table
from expert_router.data.split import RATIOS, SPLITS, assign

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from expert_router.data.clean import Duplicate, Record
    from expert_router.data.inputs import Source
    from expert_router.data.similar import Track
    from expert_router.data.sources import Rejected, Table
    from expert_router.data.split import Assignment, Split
    from expert_router.settings import Settings

T = TypeVar("T")

SEED = 7
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
    sources, missing = find_sources(experts, questions or {}, raw, data / "raw", settings.home)
    bars = _Bars(shown=progress)
    tables = [read_table(s.path, COLUMNS[s.kind], s.label) for s in bars(sources, "reading")]
    records, rejected = check_all(sources, tables, tuple(experts), bars)
    refuse_useless(sources, records, rejected)
    cleaned = clean(records, bars)
    assignment = assign(cleaned.records, cleaned.pairs, seed)
    quarantined = sorted((*rejected, *cleaned.rejected), key=lambda r: (r.file, r.line))
    files = data_files(experts, cleaned.records, assignment.splits)
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
        write_files(output, files | left_out_files(quarantined, cleaned.duplicates), _about(report))
    return report


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
    sources: Sequence[Source],
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


class _Bars:
    """Progress on stderr, one bar a step; a step that takes no time shows none."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown

    def __call__(self, items: Sequence[T], what: str) -> Iterable[T]:
        bar: Iterable[T] = tqdm(items, what, disable=not self._shown, delay=_BAR_DELAY_S, leave=False)
        return bar
