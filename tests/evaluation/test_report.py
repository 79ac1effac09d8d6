from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from expert_router.data.labelled import LabelledQuestion
from expert_router.evaluation.answers import AskedExpert, Scored, summarise
from expert_router.evaluation.pictures import draw_pictures
from expert_router.evaluation.questions import Question
from expert_router.evaluation.report import Evaluation, Perplexity, as_markdown, as_object, write_answers, write_report
from expert_router.evaluation.router_quality import router_quality
from expert_router.evaluation.routing import evaluate_routing
from expert_router.routing.policy import Policy
from expert_router.types import Scores, Served, Thresholds
from support import TITLES

if TYPE_CHECKING:
    from pathlib import Path

NAP = Question("How long?", "sleep", ("Twenty minutes.",), ("twenty",))
LONG = Question("Why?", "sleep", ("It is short.",), ())
PNG = b"\x89PNG\r\n"


def scored(question: Question, right: float, *, refused: bool = False, answerable: bool | None = None) -> Scored:
    metrics = {"token_f1": right / 2} | ({"key": right} if question.keys else {})
    served = {"sleep": Served("tiny", None)}
    return Scored(question, f"said {right}", metrics, refused, answerable, ("sleep",), served, 0.001, 0.1, 0.2, 5)


def asked() -> AskedExpert:
    base = [scored(NAP, 0), scored(NAP, 0), scored(LONG, 0)]
    ours = [scored(NAP, 1, answerable=True), scored(NAP, 0, answerable=True), scored(LONG, 1)]
    withheld = [scored(NAP, 0, refused=refused, answerable=False) for refused in (True, False)] + [scored(LONG, 0)]
    variants = {"base": base, "base+knowledge": ours}
    return AskedExpert(
        "sleep",
        "test",
        variants,
        {"base+knowledge": withheld},
        {"base+knowledge": withheld},
        ours,
        "base+knowledge",
    )


def evaluation(perplexity: Perplexity | None = None) -> Evaluation:
    policy = Policy(Thresholds(0.5, 0.4), TITLES)
    examples = [LabelledQuestion(str(n), frozenset({"sleep"} if n else ()), "some") for n in range(4)]
    router = evaluate_routing(examples, lambda _: policy.decide(Scores({"sleep": 0.9, "cars": 0.1}, 0.1)), "fixed")
    quality = router_quality(examples, router.decisions, resamples=20)
    return Evaluation(
        {"settings": "tiny"}, ["cars is left out."], router, quality, [summarise(asked())], {"sleep": perplexity}
    )


def row(markdown: str, start: str) -> list[str]:
    """The cells of the first row that begins so."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line[1:-1].split("|")]


def test_figures_stand_with_their_interval_and_the_number_of_questions() -> None:
    text = as_markdown(evaluation(), {})
    assert row(text, "key-fact accuracy") == [
        "key-fact accuracy", "0.0% (0.0% to 65.8%)", "50.0% (9.5% to 90.5%)", "2",
    ]  # fmt: skip
    assert row(text, "token F1")[-1] == "3"
    assert row(text, "some") == ["some", "75.0% (30.1% to 95.4%)", "4"]
    assert row(text, "unanswerable that were refused (recall)")[1] == "50.0% (9.5% to 90.5%), n 2"
    assert row(text, "sleep")[2:4] == ["base+knowledge", "key-fact accuracy"]
    assert "- cars is left out." in text
    assert not re.search(r"\bnan\b|None", text)


def test_what_was_not_measured_has_no_row() -> None:
    assert "| chrF |" not in as_markdown(evaluation(), {})


def test_tables_come_before_pictures() -> None:
    text = as_markdown(evaluation(), {"confusion.png": "Who was taken for whom"})
    assert text.endswith("![Who was taken for whom](confusion.png)\n")
    assert text.rindex("| --- |") < text.index("![")


def test_perplexity_is_of_the_training_run_or_said_to_be_missing() -> None:
    assert "Perplexity: not measured" in as_markdown(evaluation(), {})
    trained = as_markdown(evaluation(Perplexity("tiny", 8.25, 3.5)), {})
    assert "(tiny): 8.25 without the adapter, 3.50 with it." in trained


def test_the_json_has_what_the_tables_show() -> None:
    found = json.loads(json.dumps(as_object(evaluation()), allow_nan=False))
    (expert,) = found["experts"]
    assert expert["variants"]["base+knowledge"]["metrics"]["key"]["value"] == 0.5
    assert expert["variants"]["base+knowledge"]["served"] == {"sleep": {"base": "tiny", "adapter": None}}
    assert expert["gate"]["passed"] is False
    assert expert["together"]["regret"]["key"]["value"] == 0.0
    assert found["router"]["confusion"][1] == [1, 0]
    assert len(found["router"]["wrong"]) == 1


def test_report_answers_and_pictures_are_files_beside_each_other(tmp_path: Path) -> None:
    whole = evaluation()
    pictures = draw_pictures(tmp_path, whole)
    write_report(tmp_path, whole, pictures)
    write_answers(tmp_path, [asked()])
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "report.json", "answers.jsonl", *pictures}
    assert set(pictures) == {"confusion.png", "calibration.png", "answers.png"}
    for name in pictures:
        assert (tmp_path / name).read_bytes().startswith(PNG)
        assert f"]({name})" in (tmp_path / "report.md").read_text("utf-8")
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()]
    assert [line["variant"] for line in lines[::3]] == [
        "base", "base+knowledge", "base+knowledge, answer withheld", "base+knowledge, unanswerable", "auto",
    ]  # fmt: skip
    assert lines[3]["answer"] == "said 1"
    assert lines[3]["key"] == 1
