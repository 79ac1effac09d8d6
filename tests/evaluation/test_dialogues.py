from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from expert_router.data.dialogues import read_dialogues
from expert_router.errors import DataError
from expert_router.evaluation.dialogues import measure_dialogues
from expert_router.types import Decision

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TALK = [("What is a nap?", ["sleep"], "start"), ("And why?", ["sleep"], "follow-up"), ("Thanks!", [], "thanks")]


def written(path: Path, *dialogues: list[tuple[str, list[str], str]]) -> Path:
    lines = [
        json.dumps({"turns": [{"user": said, "experts": experts, "kind": kind} for said, experts, kind in turns]})
        for turns in dialogues
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def decision(*experts: str, kind: str = "single") -> Decision:
    return Decision(kind if experts else "general", experts, None, None, "")  # type: ignore[arg-type]


def test_each_turn_is_decided_with_those_before_it_and_counted_by_its_kind(tmp_path: Path) -> None:
    asked = []

    def decide(said: str, history: Sequence[str]) -> Decision:
        asked.append((said, list(history)))
        return decision("sleep")

    report = measure_dialogues(read_dialogues(written(tmp_path / "d.jsonl", TALK, TALK[:1])), decide)
    assert asked == [
        ("What is a nap?", []),
        ("And why?", ["What is a nap?"]),
        ("Thanks!", ["What is a nap?", "And why?"]),
        ("What is a nap?", []),
    ]
    assert {kind: (right.value, right.n) for kind, right in report.kinds.items()} == {
        "start": (1.0, 2),
        "follow-up": (1.0, 1),
        "thanks": (0.0, 1),
    }
    assert (report.all.value, report.all.n) == (0.75, 4)
    assert report.wrong == [("Thanks!", "", "single", "sleep")]


def test_a_question_back_is_wrong_even_with_the_right_name_among_the_choices(tmp_path: Path) -> None:
    dialogues = read_dialogues(written(tmp_path / "d.jsonl", TALK[:1]))
    assert measure_dialogues(dialogues, lambda *_: decision("sleep", kind="clarify")).all.value == 0.0


@pytest.mark.parametrize("content", ["", "{}\n", "no json\n", '{"turns": [{"user": "why"}]}\n', '{"turns": []}\n'])
def test_what_holds_no_dialogue_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "d.jsonl").write_text(content, "utf-8")
    with pytest.raises(DataError, match=r"d\.jsonl"):
        read_dialogues(tmp_path / "d.jsonl")


def test_the_shipped_dialogues_are_many_and_no_turn_of_a_test_dialogue_is_among_those_to_calibrate(
    request: pytest.FixtureRequest,
) -> None:
    folder = request.config.rootpath / "data" / "dialogues"
    known, test = (read_dialogues(folder / f"{split}.jsonl") for split in ("calibration", "test"))
    assert len(test) >= 80
    begun = {dialogue[0].said.casefold() for dialogue in known}
    assert not begun & {dialogue[0].said.casefold() for dialogue in test}
