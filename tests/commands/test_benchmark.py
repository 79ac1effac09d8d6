"""``benchmark`` with the shipped encoder, on a few questions in the form of CLINC150's file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from expert_router.commands import run

if TYPE_CHECKING:
    from pathlib import Path

CALLED = ["Acme", "my bank", "the garage", "my sister", "work", "Ann", "the office", "Bob", "the shop", "her", "him"]
NEEDED = {
    "accuracy",
    "auroc",
    "auprc",
    "oos_recall",
    "false_alarm",
    "ece",
    "fit_s",
    "p50_ms",
    "p95_ms",
}


@pytest.fixture
def clinc(tmp_path: Path) -> Path:
    asked = {
        split: [[f"{begins} {who}", intent] for who in names for begins, intent in forms]
        for split, names, forms in (
            (
                "train",
                CALLED[:4],
                (("call", "phone"), ("book a table near", "dinner"), ("convert dollars for", "money")),
            ),
            (
                "val",
                CALLED[4:9],
                (("ring up", "phone"), ("reserve dinner near", "dinner"), ("exchange euros for", "money")),
            ),
            (
                "test",
                CALLED[9:],
                (("phone", "phone"), ("a table for two near", "dinner"), ("change dollars for", "money")),
            ),
        )
    }
    asked["oos_test"] = [["why is the sky blue", "oos"], ["boiling point of lead", "oos"]]
    (tmp_path / "data_full.json").write_text(json.dumps(asked), "utf-8")
    return tmp_path


def test_json_has_every_figure(clinc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["benchmark", "clinc150", "--data", str(clinc), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) >= NEEDED
    assert (report["accuracy"], report["auroc"], report["test"], report["out_of_scope"]) == (1.0, 1.0, 6, 2)


def test_the_table_names_what_was_measured(clinc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["benchmark", "clinc150", "--data", str(clinc)]) == 0
    table = capsys.readouterr().out
    assert "100.0% of 6 questions, 3 intents" in table
    assert "1.0000, 1.000 (2 questions)" in table


def test_without_the_file_it_says_where_to_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["benchmark", "banking77", "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "https://github.com/PolyAI-LDN" in error
    assert error.count("\n") == 1
