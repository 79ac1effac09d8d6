"""Questions with the experts they need: what routers are fitted on, compared on and measured on."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expert_router.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

NO_EXPERT = {"other", "none", "ambiguous"}
"""Labels of JSON lines that mean: no expert."""


@dataclass(frozen=True, slots=True)
class LabelledQuestion:
    """``experts`` is empty when none is needed; ``kind`` groups reports: ``sleep``, ``hard negatives``, ..."""

    query: str
    experts: frozenset[str]
    kind: str


def read_labelled(path: Path) -> list[LabelledQuestion]:
    """The prepared CSV (``query``, ``experts`` joined by |, ``source``, ``trap``) or JSON lines (``query``, ``label``).

    A label is an expert, a list of experts, or one of ``NO_EXPERT``. Raises ``DataError``.
    """
    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                questions = [_from_csv(row) for row in csv.DictReader(file)]
        else:
            lines = path.read_text("utf-8").split("\n")  # splitlines would also cut at U+2028
            questions = [_from_json(json.loads(line), path.stem) for line in lines if line.strip()]
    except FileNotFoundError:
        raise DataError(f"There is no {path}. Prepared data comes from: expert-router prepare") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise DataError(f"{path} is not a file of labelled questions: {error!r}") from error
    if not questions:
        raise DataError(f"{path} has no questions.")
    return questions


def _from_csv(row: dict[str, str]) -> LabelledQuestion:
    experts = frozenset(filter(None, row["experts"].split("|")))
    if len(experts) > 1:
        kind = "several topics"
    elif row["source"] == "multi_topic" and experts:
        kind = "look-alikes"
    elif experts:
        (kind,) = experts
    else:
        kind = "hard negatives" if row["trap"] else "other"
    return LabelledQuestion(row["query"], experts, kind)


def _from_json(item: dict[str, Any], file: str) -> LabelledQuestion:
    label = item["label"]
    names = label if isinstance(label, list) else [] if label in NO_EXPERT else [label]
    return LabelledQuestion(item["query"], frozenset(names), file)
