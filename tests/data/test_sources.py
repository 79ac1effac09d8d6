"""Files as people really have them: what is read, what is said about it, and what is refused with which words."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from pyarrow import parquet

from expert_router.data.sources import Columns, Table, read_table
from expert_router.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

QA = Columns(("question", "answer", "key", "topic"))
HEADER = "question,answer,key,topic\n"
ROW = "What is REM sleep?,A stage with dreams.,dreams,stages\n"


def read(tmp_path: Path, content: str | bytes, name: str = "x.csv", columns: Columns = QA) -> Table:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, columns, name)


def refusal(tmp_path: Path, content: str | bytes, name: str = "x.csv") -> str:
    with pytest.raises(DataError) as caught:
        read(tmp_path, content, name)
    return str(caught.value)


def only_values(table: Table) -> dict[str, str]:
    (row,) = table.rows
    return dict(row.values)


EXPECTED = {"question": "What is REM sleep?", "answer": "A stage with dreams.", "key": "dreams", "topic": "stages"}


def test_plain_file_has_no_notes(tmp_path: Path) -> None:
    table = read(tmp_path, HEADER + ROW)
    assert only_values(table) == EXPECTED
    assert (table.rows[0].file, table.rows[0].line, table.rows[0].content) == ("x.csv", 2, ROW.strip())
    assert table.notes == () == table.rejected


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + (HEADER + ROW).encode(),
        (HEADER + ROW).replace("\n", "\r\n").encode(),
        (HEADER + ROW).replace("\n", "\r").encode(),
        ("\n\n" + HEADER + "\n" + ROW + "\n  \n").encode(),
        (" Question ,ANSWER,key ,\tTopic\n" + ROW).encode(),
        b"topic,key,answer,question\nstages,dreams,A stage with dreams.,What is REM sleep?\n",
        (HEADER + ROW).rstrip("\n").encode(),
        (HEADER + ROW.replace("stages\n", "stages,,\n")).encode(),
    ],
    ids=[
        "BOM",
        "CRLF",
        "CR",
        "blank lines",
        "column case and spaces",
        "column order",
        "no last newline",
        "empty cells",
    ],
)
def test_harmless_oddities_change_nothing(tmp_path: Path, content: bytes) -> None:
    table = read(tmp_path, content)
    assert only_values(table) == EXPECTED
    assert table.rejected == ()


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_delimiter_is_found_in_the_header_and_said(tmp_path: Path, delimiter: str) -> None:
    table = read(tmp_path, (HEADER + ROW).replace(",", delimiter))
    assert only_values(table) == EXPECTED
    assert table.notes == (f"the delimiter is {delimiter!r}",)


def test_delimiter_line_of_excel(tmp_path: Path) -> None:
    assert only_values(read(tmp_path, "sep=;\n" + (HEADER + ROW).replace(",", ";"))) == EXPECTED


def test_quoted_newlines_quotes_and_delimiters_and_the_lines_after_them(tmp_path: Path) -> None:
    table = read(tmp_path, HEADER + '"Two\r\nlines, and ""quotes""",a,a,t\n' + ROW)
    assert [row.line for row in table.rows] == [2, 4]
    assert table.rows[0].values["question"] == 'Two\r\nlines, and "quotes"'


def test_key_alternatives_do_not_look_like_a_delimiter(tmp_path: Path) -> None:
    assert read(tmp_path, HEADER + "q,a,a|b|c|d,t\n").rows[0].values["key"] == "a|b|c|d"


def test_extra_columns_are_left_aside_and_said(tmp_path: Path) -> None:
    table = read(tmp_path, "id,question,answer,key,topic,Source\n7," + ROW.strip() + ",web\n")
    assert only_values(table) == EXPECTED
    assert table.notes == ("columns left aside: 'id', 'source'",)


def test_optional_column_may_be_missing(tmp_path: Path) -> None:
    table = read(tmp_path, "question\nwhy\n", columns=Columns(("question",), ("note",)))
    assert only_values(table) == {"question": "why", "note": ""}


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_latin_1_is_detected_and_said(tmp_path: Path, encoding: str) -> None:
    table = read(tmp_path, (HEADER + ROW + "Who designed the Citroën Traction Avant?,B,B,t\n").encode(encoding))
    assert table.rows[1].values["question"] == "Who designed the Citroën Traction Avant?"
    assert table.notes == ("1 line is not UTF-8 (the first is 3): read as Latin-1 (Windows-1252)",)


def test_typographic_quotes_of_windows(tmp_path: Path) -> None:
    assert (
        read(tmp_path, (HEADER + "What\u2019s REM?,a,a,t\n").encode("cp1252")).rows[0].values["question"]
        == "What\u2019s REM?"
    )


def test_one_bad_byte_does_not_garble_the_utf_8_lines(tmp_path: Path) -> None:
    table = read(tmp_path, (HEADER + "Citroën,a,a,t\n").encode() + b"Citro\xebn,a,a,t\nodd \x81,a,a,t\n")
    assert [row.values["question"] for row in table.rows] == ["Citroën", "Citroën", "odd \x81"]
    assert "2 lines are not UTF-8 (the first is 3)" in table.notes[0]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_utf_16_and_32_with_a_mark(tmp_path: Path, encoding: str) -> None:
    mark = "" if encoding in {"utf-16", "utf-32"} else "\ufeff"
    table = read(tmp_path, (mark + HEADER + ROW.replace("dreams", "rêves")).encode(encoding))
    assert table.rows[0].values["key"] == "rêves"
    assert table.notes[0].startswith("the file is in UTF-")


def test_broken_utf_16_is_refused(tmp_path: Path) -> None:
    assert "x.csv: begins like UTF-16-LE but is not" in refusal(tmp_path, b"\xff\xfea\x00b\x00c")


def test_nul_bytes_are_removed_and_said(tmp_path: Path) -> None:
    table = read(tmp_path, HEADER + ROW.replace("REM", "R\0E\0M"))
    assert only_values(table) == EXPECTED
    assert table.notes == ("2 NUL characters were removed, the first in line 2",)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \r\n\n"])
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_empty_file_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    assert refusal(tmp_path, content, name) == (
        f"{name}: the file is empty. Expected the columns question, answer, key, topic."
    )


def test_header_only_is_said(tmp_path: Path) -> None:
    table = read(tmp_path, HEADER)
    assert table.rows == ()
    assert table.notes == ("the file has a header and no rows",)


def test_wrong_header_names_what_is_missing_and_what_was_found(tmp_path: Path) -> None:
    assert refusal(tmp_path, "\nFrage;answer;Schlüssel\na;b;c\n") == (
        "x.csv:2: the columns question, key, topic not found. "
        "Needed: question, answer, key, topic. Found: 'frage', 'answer', 'schlüssel'."
    )


def test_missing_header_shows_the_beginning_of_the_first_row(tmp_path: Path) -> None:
    message = refusal(tmp_path, "x" * 500 + ",b,c,d\n")
    assert "the columns question, answer, key, topic not found" in message
    assert len(message) < 250


def test_column_given_twice_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, "question,answer,key,topic,Key\n") == "x.csv:1: the column key is there 2 times."


def test_ragged_rows_are_rejected_with_line_and_content(tmp_path: Path) -> None:
    table = read(tmp_path, HEADER + "short,row\n" + ROW + "a,b,c,d,e\n")
    assert [(r.line, r.reason, r.content) for r in table.rejected] == [
        (2, "the row has 2 cells where the header has 4", "short,row"),
        (4, "the row has 5 cells where the header has 4", "a,b,c,d,e"),
    ]
    assert only_values(table) == EXPECTED


@pytest.mark.parametrize("bad", ['"never closed,a,a,t', '"closed" too early,a,a,t'])
def test_bad_quotes_cost_one_row_and_not_the_rest_of_the_file(tmp_path: Path, bad: str) -> None:
    table = read(tmp_path, HEADER + ROW + bad + "\n" + ROW * 3 + '"q, quoted",a,a,t\n')
    assert [row.line for row in table.rows] == [2, 4, 5, 6, 7]
    (rejected,) = table.rejected
    assert (rejected.line, rejected.content) == (3, bad)
    assert rejected.reason.startswith("not valid CSV: ")


def test_huge_fields_cost_one_row(tmp_path: Path) -> None:
    table = read(tmp_path, HEADER + f"{'x' * 300_000},a,a,t\n" + ROW)
    assert only_values(table) == EXPECTED
    assert [(r.line, r.reason) for r in table.rejected] == [
        (2, "not valid CSV: field larger than field limit (131072)")
    ]


def test_jsonl(tmp_path: Path) -> None:
    lines = [
        json.dumps({"Question": "q\u2028x", "answer": None, "key": ["a", "b"], "topic": 1908, "id": 3}),
        "",
        '{"question": "half"',
        '["a list"]',
        '{"question": "q", "answer": "a"}',
        '{"question": "q", "answer": {"a": 1}, "key": "k", "topic": true}',
    ]
    table = read(tmp_path, "\n".join(lines), "x.jsonl")
    assert only_values(table) == {"question": "q\u2028x", "answer": "", "key": "a|b", "topic": "1908"}
    assert [(r.line, r.content) for r in table.rejected] == [(n, lines[n - 1]) for n in (3, 4, 5, 6)]
    assert [r.reason.partition(":")[0] for r in table.rejected] == [
        "not valid JSON",
        "the line is not a JSON object",
        "the row lacks key, topic",
        "answer holds dict, not text",
    ]
    assert table.notes == ("columns left aside: 'id'",)


def test_jsonl_without_a_column_is_refused_like_a_wrong_header(tmp_path: Path) -> None:
    message = refusal(tmp_path, '{"prompt": "q", "answer": "a"}\n' * 3, "x.jsonl")
    assert message.startswith("x.jsonl: the columns question, key, topic not found.")


def write_parquet(path: Path, **columns: list[object]) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


def test_parquet_counts_rows_as_lines(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "x.parquet",
        Question=["q1", None],
        answer=["a", "b"],
        key=[1908.0, None],
        topic=[["s", "t"], ["u"]],
        weight=[1, 2],
    )
    table = read_table(path, QA, "x.parquet")
    assert [(row.line, dict(row.values)) for row in table.rows] == [
        (1, {"question": "q1", "answer": "a", "key": "1908", "topic": "s|t"}),
        (2, {"question": "", "answer": "b", "key": "", "topic": "u"}),
    ]
    assert table.notes == ("columns left aside: 'weight'",)


def test_parquet_with_a_wrong_schema_or_content_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", question=["q"], answer=["a"])
    with pytest.raises(DataError, match=r"x\.parquet: the columns key, topic not found"):
        read_table(path, QA, "x.parquet")
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"x\.parquet: is not a Parquet file that can be read"):
        read_table(path, QA, "x.parquet")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", question=["q"])
    code = (
        "import sys, pathlib; sys.modules['pyarrow'] = None\n"
        "from expert_router.data.sources import Columns, read_table\n"
        "read_table(pathlib.Path(sys.argv[1]), Columns(('question',)), 'x.parquet')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert (
        "x.parquet: reading Parquet needs pyarrow. Install it with: pip install 'expert-router[parquet]'."
        in done.stderr
    )


def test_binary_file_with_a_text_suffix_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, b"PK\x03\x04...").startswith("x.csv: is an Excel or zip file, not text.")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data/none\.csv: cannot be read: No such file or directory\.$"):
        read_table(tmp_path / "none.csv", QA, "data/none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv: cannot be read: Is a directory"):
        read_table(tmp_path / "folder.csv", QA)
    with pytest.raises(DataError, match=r"the suffix '\.docx' is not known\. Known: \.csv, \.tsv"):
        read_table(tmp_path / "x.docx", QA)
