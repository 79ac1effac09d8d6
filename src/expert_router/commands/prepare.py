"""``expert-router prepare``: validate, clean and split the raw question files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_router.data.prepare import PrepareReport

HELP = "Validate, clean and split the raw question files into data/processed."

_MOST_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--raw", type=_folder, metavar="DIR", help="take every raw file from this folder")
    parser.add_argument(
        "--questions",
        type=_named_file,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="take the questions of one expert from this file (CSV, JSONL or Parquet); may be repeated",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="write here instead of data/processed")
    parser.add_argument("--seed", type=int, help="of the split; the same seed gives the same split")
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no table")


def main(args: argparse.Namespace) -> int:
    from expert_router.data.prepare import SEED, prepare
    from expert_router.settings import load_settings

    report = prepare(
        load_settings(getattr(args, "config", None)),
        questions=dict(args.questions),
        raw=args.raw,
        output=args.output,
        seed=SEED if args.seed is None else args.seed,
        dry_run=args.dry_run,
        progress=not args.quiet,
    )
    if not args.quiet:
        print("\n".join(_summary(report, dry_run=args.dry_run)))
    return 0


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return Path(text)


def _named_file(text: str) -> tuple[str, Path]:
    name, separator, file = text.partition("=")
    if not (name and separator and file):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE, for instance sleep=my_questions.csv")
    return name, Path(file)


def _summary(report: PrepareReport, *, dry_run: bool) -> list[str]:
    notes = [f"{each.path}: {note}" for each in report.inputs for note in each.notes] + list(report.notes)
    return [*_table(report), *(f"note: {note}" for note in notes), *_where(report, dry_run=dry_run)]


def _table(report: PrepareReport) -> list[str]:
    columns = ("rows", "kept", "duplicates", "quarantined", "train", "calibration", "test")
    counts = {
        each.path: (each.rows, each.kept, each.duplicates, each.quarantined, *each.splits.values())
        for each in report.inputs
    }
    counts["all"] = tuple(map(sum, zip(*counts.values(), strict=True)))
    rows = [("file", *columns), *((path, *map(str, row)) for path, row in counts.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [_line(row, widths) for row in rows]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    file, *numbers = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return "  ".join([cells[0].ljust(len(file)), *numbers])


def _where(report: PrepareReport, *, dry_run: bool) -> list[str]:
    if not dry_run:
        return [f"written to {report.output}: see manifest.json, quarantine.csv and duplicates.csv there"]
    shown = [f"{r.file}:{r.line}: {r.reason}" for r in report.quarantined[:_MOST_SHOWN]]
    if (left := len(report.quarantined) - len(shown)) > 0:
        shown.append(f"and {left} more rows that would be quarantined")
    return [*shown, "nothing was written"]
