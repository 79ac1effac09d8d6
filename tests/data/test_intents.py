from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from expert_router.data.intents import FILES, SOURCES, read_intents
from expert_router.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

CLINC = {
    "train": [["wake me at six", "alarm"], ["what is one plus one", "calculator"]],
    "val": [["set an alarm", "alarm"]],
    "test": [["add two and three", "calculator"]],
    "oos_val": [["who wrote emma", "oos"]],
    "oos_test": [["how tall is everest", "oos"], ["name a river", "oos"]],
    "oos_train": [["why is the sky blue", "oos"]],
}


def banking(rows: int) -> str:
    lines = [f'"Where is my card, {n}?\nPlease.",card' for n in range(rows)] + [f"why {n},fee" for n in range(rows)]
    return "\n".join(["text,category", *lines]) + "\n"


@pytest.mark.parametrize("name", FILES["clinc150"][0])
def test_clinc150_keeps_its_splits_and_out_of_scope_questions_only_to_measure(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps(CLINC), "utf-8")
    data = read_intents("clinc150", tmp_path)
    assert data.train == [("wake me at six", "alarm"), ("what is one plus one", "calculator")]
    assert data.validation == [("set an alarm", "alarm")]
    assert data.test == [("add two and three", "calculator")]
    assert data.out_of_scope == ["how tall is everest", "name a river"]
    assert data.intents == ["alarm", "calculator"]


def test_banking77_holds_out_a_tenth_of_each_intents_training_questions_the_same_every_time(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(banking(20), "utf-8")
    (tmp_path / "test.csv").write_text(banking(1), "utf-8")
    data = read_intents("banking77", tmp_path)
    assert Counter(intent for _, intent in data.validation) == {"card": 2, "fee": 2}
    assert len(set(data.train) | set(data.validation)) == len(data.train) + len(data.validation) == 40
    assert data.test == [("Where is my card, 0?\nPlease.", "card"), ("why 0", "fee")]
    assert data.out_of_scope == []
    assert read_intents("banking77", tmp_path) == data


def test_other_bytes_have_another_hash(tmp_path: Path) -> None:
    hashes = set()
    for rows in (20, 21):
        (tmp_path / "train.csv").write_text(banking(rows), "utf-8")
        (tmp_path / "test.csv").write_text(banking(1), "utf-8")
        hashes.add(read_intents("banking77", tmp_path).sha256)
    assert len(hashes) == 2


@pytest.mark.parametrize("name", SOURCES)
def test_where_a_file_is_missing_it_says_which_and_where_it_is_to_be_had(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"There is no {FILES[name][0][0]} .*https://github.com/"):
        read_intents(name, tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"not json", b"[]", b"{}", json.dumps({**CLINC, "val": []}).encode(), b'{"train": [["one"]]}', b"\xff\xfe"],
)
def test_a_file_that_is_something_else_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data_full.json").write_bytes(content)
    with pytest.raises(DataError, match=r"data_full\.json"):
        read_intents("clinc150", tmp_path)


@pytest.mark.parametrize("content", ["", "question,label\nwhy,fee\n", "text,category\n"])
def test_a_table_without_its_columns_or_rows_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "train.csv").write_text(content, "utf-8")
    (tmp_path / "test.csv").write_text(banking(1), "utf-8")
    with pytest.raises(DataError, match=r"train\.csv"):
        read_intents("banking77", tmp_path)
