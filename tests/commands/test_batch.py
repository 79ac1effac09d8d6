"""``ask --input`` and ``route --input``: every line comes back, in order, with an answer or an error."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from cli import one_line

from support import ANSWER_KEYS, SLEEP_QUESTION

if TYPE_CHECKING:
    from pathlib import Path

    from cli import CommandLine

BAD_LINES = {
    "not json": "not JSON: ",
    '{"query": "cut off': "not JSON: ",
    '["a", "list"]': 'not an object with a "query"',
    '"text"': 'not an object with a "query"',
    "17": 'not an object with a "query"',
    "{}": 'not an object with a "query"',
    '{"query": null}': 'not an object with a "query"',
    '{"query": "  "}': 'not an object with a "query"',
    '{"query": "half a pair: \\ud83d"}': "not JSON: ",
    '{"query": "Why?", "history": "no list"}': '"history" must be a list',
    '{"query": "Why?", "history": [1]}': '"history" must be a list',
}


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n") if line]


def test_order_is_kept_and_nothing_lost_among_many(cli: CommandLine, tmp_path: Path) -> None:
    source, target = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    queries = [f"What is dream number {n}?" for n in range(300)]
    source.write_text("".join(json.dumps({"query": query, "n": n}) + "\n" for n, query in enumerate(queries)))
    done = cli.run("ask", "--input", str(source), "--output", str(target), "--model", "sleep")
    assert (done.status, done.out) == (0, "")
    answers = lines_of(target.read_text())
    assert [(answer["n"], answer["query"]) for answer in answers] == list(enumerate(queries))
    assert all(answer["answer"] == f"[Sleep science] You asked: {answer['query']}" for answer in answers)
    assert set(answers[0]) == {"n", *ANSWER_KEYS}


@pytest.mark.parametrize("command", ["ask", "route"])
def test_bad_lines_come_back_with_an_error_in_their_place_and_status_1(cli: CommandLine, command: str) -> None:
    good = json.dumps({"query": SLEEP_QUESTION})
    lines = [good, *BAD_LINES, good]
    done = cli.run(command, "--input", "-", stdin="\n".join(lines))
    results = lines_of(done.out)
    assert done.status == 1
    assert done.error == f"{len(BAD_LINES)} of {len(lines)} lines came back with an error.\n"
    assert len(results) == len(lines)
    assert "error" not in results[0] | results[-1]
    for (line, message), result in zip(BAD_LINES.items(), results[1:-1], strict=True):
        assert message in result["error"]
        assert result.get("line", line) == line
        assert "answer" not in result
        assert "decision" not in result


def test_a_model_that_does_not_exist_is_an_error_of_each_line(cli: CommandLine) -> None:
    done = cli.run("ask", "--input", "-", "--model", "astronomy", stdin='{"query": "One?"}\n{"query": "Two?"}\n')
    assert done.status == 1
    assert [(r["query"], r["error"][:31]) for r in lines_of(done.out)] == [
        ("One?", "There is no model 'astronomy'. "),
        ("Two?", "There is no model 'astronomy'. "),
    ]


def test_answers_with_an_error_may_be_fed_in_again(cli: CommandLine) -> None:
    failed = cli.run("ask", "--input", "-", "--model", "astronomy", stdin='{"query": "One?", "id": 1}\n').out
    again = cli.run("ask", "--input", "-", "--model", "sleep", stdin=failed)
    assert again.status == 0
    (answer,) = lines_of(again.out)
    assert (answer["id"], answer["answer"]) == (1, "[Sleep science] You asked: One?")
    assert "error" not in answer


def test_line_ends_inside_of_questions_do_not_cut_them(cli: CommandLine) -> None:
    """JSON leaves U+2028 and U+0085 as they are; Python takes them for line ends, JSON lines do not."""
    queries = ["one\u2028line", "two\u0085lines", "new\nline"]
    content = "".join(json.dumps({"query": query}, ensure_ascii=False) + "\n" for query in queries)
    done = cli.run("ask", "--input", "-", "--model", "general", stdin=content)
    assert done.status == 0
    assert [answer["query"] for answer in lines_of(done.out)] == queries


@pytest.mark.parametrize(
    "content",
    [b'\xef\xbb\xbf{"query": "One?"}\r\n{"query": "Two?"}\r\n', b'\n\n{"query": "One?"}\n  \n{"query": "Two?"}\n\n\n'],
    ids=["from Windows", "with empty lines"],
)
def test_files_may_look_a_little_different(cli: CommandLine, tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "questions.jsonl"
    source.write_bytes(content)
    for origin, stdin in ((str(source), b""), ("-", content)):
        done = cli.run("route", "--input", origin, stdin=stdin)
        assert done.status == 0
        assert [result["query"] for result in lines_of(done.out)] == ["One?", "Two?"]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_a_mistake_and_says_what_a_line_is(cli: CommandLine, tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "empty.jsonl"
    source.write_bytes(content)
    done = cli.run("ask", "--input", str(source))
    assert done.status == 2
    assert one_line(done) == (
        f'{source} has no lines. Each is an object with a question: {{"query": "What is REM sleep?"}}'
    )


def test_a_missing_file_and_bytes_that_are_no_text_are_explained(cli: CommandLine, tmp_path: Path) -> None:
    assert "absent.jsonl cannot be read: " in one_line(cli.run("ask", "--input", str(tmp_path / "absent.jsonl")))
    (tmp_path / "latin.jsonl").write_bytes('{"query": "Träume?"}\n'.encode("latin-1"))
    done = cli.run("ask", "--input", str(tmp_path / "latin.jsonl"))
    assert done.status == 2
    assert "latin.jsonl cannot be read: 'utf-8' codec" in one_line(done)


def test_a_place_that_cannot_be_written_is_explained_before_any_answer(cli: CommandLine, tmp_path: Path) -> None:
    done = cli.run("ask", "--input", "-", "--output", str(tmp_path / "no" / "folder.jsonl"), stdin='{"query": "One?"}')
    assert done.status == 2
    assert "folder.jsonl cannot be written: " in one_line(done)


def test_a_reader_that_leaves_early_is_no_error(cli: CommandLine, tmp_path: Path) -> None:
    source = tmp_path / "questions.jsonl"
    source.write_text('{"query": "What is REM sleep?"}\n' * 5000)
    command = " ".join(f"'{part}'" for part in cli.command("route", "--input", str(source), config="echo"))
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | head -n 1"],
        capture_output=True, text=True, env=cli.environment(), check=False, timeout=30,
    )  # fmt: skip
    assert json.loads(done.stdout)["query"] == SLEEP_QUESTION
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
