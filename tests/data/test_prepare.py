"""The whole preparation on small real files: nothing lost, nothing moved without need, nothing half written."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from expert_router.artifacts import read_artifact, sha256_of
from expert_router.data.prepare import PrepareReport, prepare
from expert_router.errors import ConfigError, DataError
from expert_router.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

EXPERT = """
name = "{name}"
title = "{name}"
description = "About {name}."
instructions = "Answer."
[data]
questions = "data/raw/{name}_qa.csv"
split_name = "{word}"
"""
NONSENSE = [
    f"{a}{b}{c}" for a in ("bra", "clo", "dri", "fen", "gal") for b in "aeiou" for c in ("st", "ck", "mp", "rn")
]
OUTPUTS = {f"{s}_{w}.csv" for s in ("train", "calibration", "test") for w in ("car", "sleep")} | {
    "routing_train.csv",
    "routing_calibration.csv",
    "routing_test.csv",
    "quarantine.csv",
    "duplicates.csv",
    "manifest.json",
}


def write(path: Path, header: str, rows: list[list[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def questions(word: str, count: int) -> list[str]:
    rng = random.Random(word)
    return [" ".join([word, *rng.sample(NONSENSE, 6)]) for _ in range(count)]


def answered(word: str, count: int) -> list[list[str]]:
    return [[q, f"It is {i}.", str(i), f"topic {i % 3}"] for i, q in enumerate(questions(word, count))]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A checkout with two experts and all raw files, without duplicates or bad rows."""
    for name, word in (("cars", "car"), ("sleep", "sleep")):
        manifest = tmp_path / "experts" / name / "expert.toml"
        manifest.parent.mkdir(parents=True)
        manifest.write_text(EXPERT.format(name=name, word=word))
        write(tmp_path / f"data/raw/{name}_qa.csv", "question,answer,key,topic", answered(name, 40))
    other = [[q, f"subject {i % 4}", ("", "sleep", "cars")[i % 3]] for i, q in enumerate(questions("other", 40))]
    write(tmp_path / "data/raw/out_of_scope.csv", "question,subject,trap", other)
    several = [[q, ("sleep|cars", "sleep", "cars")[i % 3], ""] for i, q in enumerate(questions("both", 30))]
    write(tmp_path / "data/raw/multi_topic.csv", "question,experts,note", several)
    more = [[q, ("", "sleep", "cars", "cars|sleep")[i % 4], "", ""] for i, q in enumerate(questions("more", 20))]
    write(tmp_path / "data/raw/router_questions.csv", "question,experts,subject,trap", more)
    return tmp_path


def run(home: Path, **options: object) -> PrepareReport:
    return prepare(Settings(home=home), **options)  # type: ignore[arg-type]


def append(path: Path, *rows: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(row + "\n" for row in rows)


def rows_of(home: Path, name: str) -> list[dict[str, str]]:
    with (home / "data/processed" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_outputs_and_their_columns(home: Path) -> None:
    report = run(home)
    processed = contents(home / "data/processed")
    assert set(processed) == OUTPUTS
    assert processed["test_car.csv"].startswith(b"question,answer,key,topic\n")
    assert processed["routing_test.csv"].startswith(b"query,experts,source,subject,trap\n")
    assert processed["quarantine.csv"] == b"file,line,reason,content\n"
    assert report.counts == {name: len(rows_of(home, name)) for name in report.counts}
    assert set(report.counts) == OUTPUTS - {"quarantine.csv", "duplicates.csv", "manifest.json"}


def test_rows_arrive_with_their_label_source_subject_and_trap(home: Path) -> None:
    append(home / "data/raw/out_of_scope.csv", "  Why did  Gerald Ford\tpardon Nixon? ,Presidents,Cars")
    append(home / "data/raw/multi_topic.csv", "drowsy Citroën designers,Sleep | cars,x")
    run(home)
    routing = {r["query"]: r for s in ("train", "calibration", "test") for r in rows_of(home, f"routing_{s}.csv")}
    assert len(routing) == 172
    assert routing["Why did Gerald Ford pardon Nixon?"] == {
        "query": "Why did Gerald Ford pardon Nixon?",
        "experts": "",
        "source": "out_of_scope",
        "subject": "Presidents",
        "trap": "cars",
    }
    both = routing["drowsy Citroën designers"]
    assert (both["experts"], both["source"], both["trap"]) == ("sleep|cars", "multi_topic", "")
    first = routing[questions("sleep", 1)[0]]
    assert (first["experts"], first["source"], first["subject"]) == ("sleep", "sleep_qa", "topic 0")


def test_expert_and_routing_splits_agree(home: Path) -> None:
    run(home)
    for split in ("train", "calibration", "test"):
        routed = {r["query"] for r in rows_of(home, f"routing_{split}.csv") if r["source"] == "cars_qa"}
        assert routed == {r["question"] for r in rows_of(home, f"{split}_car.csv")} != set()


def test_no_row_is_lost(home: Path) -> None:
    append(
        home / "data/raw/cars_qa.csv",
        "only two,cells",
        ",no question,no,t",
        "wrong key,the answer,another,t",
        f"{questions('cars', 1)[0].upper()}?!,It is 0.,0,t",
        f"{questions('cars', 2)[1]},It is 17.,17,t",
        '"never closed,a,a,t',
        f"{questions('sleep', 1)[0]},It is 0.,0,t",
        "a good one,yes,yes,t",
    )
    append(home / "data/raw/multi_topic.csv", "what of boats,boats,", "who knows,,")
    report = run(home)
    cars, sleep, _, several, _ = report.inputs
    assert [each.rows for each in report.inputs] == [48, 40, 40, 32, 20]
    assert (cars.kept, cars.duplicates, cars.quarantined) == (41, 1, 6)
    assert (sleep.kept, sleep.quarantined, several.quarantined) == (39, 1, 2)
    for each in report.inputs:
        assert each.rows == each.kept + each.duplicates + each.quarantined
        assert each.kept == sum(each.splits.values())
    written = rows_of(home, "quarantine.csv")
    assert [(r["file"].removeprefix("data/raw/"), r["line"], r["reason"]) for r in written] == [
        ("cars_qa.csv", "42", "the row has 2 cells where the header has 4"),
        ("cars_qa.csv", "43", "the question is empty"),
        ("cars_qa.csv", "44", "no alternative of the key 'another' occurs in the answer"),
        ("cars_qa.csv", "46", "the same question has another key, '1', at data/raw/cars_qa.csv:3"),
        ("cars_qa.csv", "47", "not valid CSV: unexpected end of data"),
        (
            "cars_qa.csv",
            "48",
            "conflict: the same question is labelled cars here and sleep at data/raw/sleep_qa.csv:2",
        ),
        ("multi_topic.csv", "32", "there is no expert 'boats'; known: cars, sleep"),
        ("multi_topic.csv", "33", "no expert is named"),
        (
            "sleep_qa.csv",
            "2",
            "conflict: the same question is labelled sleep here and cars at data/raw/cars_qa.csv:48",
        ),
    ]
    assert written[0]["content"] == "only two,cells"
    (duplicate,) = rows_of(home, "duplicates.csv")
    assert (duplicate["line"], duplicate["kind"], duplicate["kept_line"]) == ("45", "equal", "2")


def test_manifest_pins_inputs_and_outputs_and_names_no_place_or_time(home: Path) -> None:
    report = run(home)
    manifest = read_artifact(home / "data/processed")
    assert set(manifest["files"]) == OUTPUTS - {"manifest.json"}
    assert manifest["rows"] == report.counts
    assert manifest["ratios"] == {"train": 0.7, "calibration": 0.1, "test": 0.2}
    first = manifest["inputs"][0]
    assert first["path"] == "data/raw/cars_qa.csv"
    assert first["sha256"] == sha256_of(home / "data/raw/cars_qa.csv")
    assert str(home) not in json.dumps(manifest)


def test_a_rerun_gives_the_same_bytes_also_elsewhere(home: Path, tmp_path: Path) -> None:
    run(home)
    before = contents(home / "data/processed")
    run(home)
    assert contents(home / "data/processed") == before
    moved = home.rename(tmp_path.parent / f"{tmp_path.name}-moved")
    run(moved)
    assert contents(moved / "data/processed") == before


def test_another_hash_seed_gives_the_same_bytes(home: Path) -> None:
    run(home)
    code = (
        "import pathlib, sys; from expert_router.data.prepare import prepare\n"
        "from expert_router.settings import Settings; home = pathlib.Path(sys.argv[1])\n"
        "prepare(Settings(home=home), output=home / 'again')"
    )
    subprocess.run([sys.executable, "-c", code, str(home)], check=True, env={"PYTHONHASHSEED": "12345"})
    assert contents(home / "again") == contents(home / "data/processed")


def test_seed_changes_the_split_and_nothing_else(home: Path) -> None:
    one, other = run(home), run(home, seed=1, output=home / "other")
    assert [each.kept for each in one.inputs] == [each.kept for each in other.inputs]
    assert contents(home / "data/processed")["test_car.csv"] != contents(home / "other")["test_car.csv"]


def test_near_twins_of_different_files_share_a_split(home: Path) -> None:
    twins = [q.replace("cars ", "vehicles ") for q in questions("cars", 40)]
    append(home / "data/raw/out_of_scope.csv", *(f"{q},twins," for q in twins))
    report = run(home)
    place = {r["query"]: s for s in ("train", "calibration", "test") for r in rows_of(home, f"routing_{s}.csv")}
    assert report.notes == ()
    assert Counter(place[q] == place[t] for q, t in zip(questions("cars", 40), twins, strict=True)) == {True: 40}


def test_failure_leaves_the_old_outputs(home: Path) -> None:
    run(home)
    before = contents(home / "data/processed")
    (home / "data/raw/multi_topic.csv").write_text("wrong,header\n1,2\n")
    with pytest.raises(DataError, match=r"^data/raw/multi_topic\.csv:1: the columns question, experts not found"):
        run(home)
    assert contents(home / "data/processed") == before


def test_full_disk_leaves_the_old_outputs(home: Path) -> None:
    run(home)
    before = contents(home / "data/processed")
    append(home / "data/raw/sleep_qa.csv", "one more,yes,yes,t")
    code = (
        "import pathlib, resource, sys; from expert_router.data.prepare import prepare\n"
        "from expert_router.settings import Settings\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))\n"
        "prepare(Settings(home=pathlib.Path(sys.argv[1])))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=False)
    assert "DataError" in done.stderr
    assert "cannot be written: File too large." in done.stderr
    assert contents(home / "data/processed") == before


def test_dry_run_writes_nothing(home: Path) -> None:
    append(home / "data/raw/cars_qa.csv", "bad row")
    report = run(home, dry_run=True)
    assert [r.line for r in report.quarantined] == [42]
    assert not (home / "data/processed").exists()


def test_a_users_own_file_of_another_kind(home: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine" / "Fragen.jsonl"
    own.parent.mkdir()
    items = [{"question": q, "answer": a, "key": k, "topic": t, "id": 1} for q, a, k, t in answered("own", 20)]
    own.write_text("\n".join(json.dumps(item) for item in items))
    report = run(home, questions={"sleep": own})
    mine = report.inputs[1]
    assert (mine.path, mine.kept, mine.notes) == ("mine/Fragen.jsonl", 20, ("columns left aside: 'id'",))
    assert {r["source"] for r in rows_of(home, "routing_train.csv") if r["experts"] == "sleep"} >= {"Fragen"}


def test_another_raw_folder_and_format(home: Path, tmp_path: Path) -> None:
    raw = tmp_path / "elsewhere"
    write(raw / "cars_qa.tsv", "question,answer,key,topic", answered("tab", 10))
    write(raw / "sleep_qa.csv", "question,answer,key,topic", answered("dream", 10))
    report = run(home, raw=raw)
    assert [each.path for each in report.inputs] == ["elsewhere/cars_qa.tsv", "elsewhere/sleep_qa.csv"]
    assert report.notes == (
        "there is no out_of_scope.csv: the routing files have no such questions",
        "there is no multi_topic.csv: the routing files have no such questions",
        "there is no router_questions.csv: the routing files have no such questions",
    )


def test_missing_file_says_where_to_put_it(home: Path) -> None:
    (home / "data/raw/sleep_qa.csv").unlink()
    with pytest.raises(DataError, match=r"data/raw/sleep_qa\.csv: there is no such file.*--questions sleep=FILE"):
        run(home)


def test_file_without_a_usable_row_is_refused(home: Path) -> None:
    path = home / "data/raw/cars_qa.csv"
    path.write_text("question,answer,key,topic\n")
    with pytest.raises(DataError, match=r"cars_qa\.csv: has a header and no rows, but the expert 'cars' needs some"):
        run(home)
    append(path, "q,,k,t", "x")
    with pytest.raises(DataError, match=r"none of its 2 rows can be used\. The first: data/raw/cars_qa\.csv:\d"):
        run(home)


def test_names_that_clash_or_do_not_exist_are_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no expert named 'boats'\. Known: cars, sleep"):
        run(home, questions={"boats": home / "x.csv"})
    with pytest.raises(DataError, match=r"data/raw/cars_qa\.csv: 2 inputs have this name"):
        run(home, questions={"sleep": home / "data/raw/cars_qa.csv"})


def test_output_that_is_a_file_is_refused(home: Path) -> None:
    with pytest.raises(DataError, match="cannot be written: File exists"):
        run(home, output=home / "data/raw/cars_qa.csv")


def test_template_data_reaches_every_split_and_is_not_removed(home: Path) -> None:
    rows = [[f"What is sleep fact number {i}?", f"It is {i}.", str(i), "t"] for i in range(200)]
    write(home / "data/raw/sleep_qa.csv", "question,answer,key,topic", rows)
    report = run(home)
    assert report.inputs[1].kept == 200
    assert min(report.inputs[1].splits.values()) >= 10
    assert "pairs of similar questions are in different splits" in report.notes[0]


def test_huge_content_is_shortened_in_the_quarantine(home: Path) -> None:
    append(home / "data/raw/cars_qa.csv", f"{'x' * 5_000},yes,yes,t")
    run(home)
    (row,) = rows_of(home, "quarantine.csv")
    assert row["reason"] == "the question has 5,000 characters, more than 2,000"
    assert row["content"].endswith("… (5,010 characters)")
