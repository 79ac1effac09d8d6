"""Public intent data sets, as their authors publish them: CLINC150 and BANKING77."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_router.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HELD_OUT = 0.1
"""BANKING77 has no validation questions: so many of each intent's training questions are."""
SOURCES = {
    "clinc150": "data/data_full.json of https://github.com/clinc/oos-eval (Larson et al. 2019)",
    "banking77": "banking_data/train.csv and test.csv of https://github.com/PolyAI-LDN/task-specific-datasets "
    "(Casanueva et al. 2020)",
}
FILES = {
    "clinc150": (("data_full.json", "clinc150_data_full.json"),),
    "banking77": (("train.csv", "banking77_train.csv"), ("test.csv", "banking77_test.csv")),
}
"""The names that each file may have: its authors', and one that says what it is."""

Labelled = list[tuple[str, str]]
"""Questions, each with its intent."""


@dataclass(frozen=True, slots=True)
class IntentData:
    """``out_of_scope`` questions belong to no intent and are for measuring; ``sha256`` is of the files' bytes."""

    name: str
    train: Labelled
    validation: Labelled
    test: Labelled
    out_of_scope: list[str]
    sha256: str

    @property
    def intents(self) -> list[str]:
        return sorted({intent for _, intent in self.train})


def read_intents(name: str, folder: Path) -> IntentData:
    """The data set of a name in ``SOURCES``. Raises ``DataError``, which says where its files are to be had."""
    files = [_file_of(name, folder, names) for names in FILES[name]]
    try:
        contents = [path.read_bytes() for path in files]
        splits = _clinc150(contents[0]) if name == "clinc150" else _banking77(*contents)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise DataError(f"{files[0]} is not {SOURCES[name]}: {error!r}") from error
    if not all(splits[:3]):
        raise DataError(f"{files[0]}: a split has no questions. {name} is {SOURCES[name]}.")
    return IntentData(name, *splits, hashlib.sha256(b"".join(contents)).hexdigest())


def _file_of(name: str, folder: Path, names: Sequence[str]) -> Path:
    for file in names:
        if (folder / file).is_file():
            return folder / file
    raise DataError(f"There is no {' or '.join(names)} in {folder}. {name} is {SOURCES[name]}.")


def _clinc150(content: bytes) -> tuple[Labelled, Labelled, Labelled, list[str]]:
    rows = json.loads(content)
    train, validation, test = (
        [(str(question), str(intent)) for question, intent in rows[split]] for split in ("train", "val", "test")
    )
    return train, validation, test, [str(question) for question, _ in rows["oos_test"]]


def _banking77(train: bytes, test: bytes) -> tuple[Labelled, Labelled, Labelled, list[str]]:
    known, asked = (
        [(row["text"], row["category"]) for row in csv.DictReader(content.decode("utf-8").splitlines(keepends=True))]
        for content in (train, test)
    )
    rng = random.Random(0)  # noqa: S311 - reproducible, not secret
    by_intent: dict[str, Labelled] = defaultdict(list)
    for question, intent in known:
        by_intent[intent].append((question, intent))
    kept: Labelled = []
    held_out: Labelled = []
    for rows in by_intent.values():
        rng.shuffle(rows)
        count = round(len(rows) * HELD_OUT)
        held_out += rows[:count]
        kept += rows[count:]
    return kept, held_out, asked, []
