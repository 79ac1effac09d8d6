from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expert_router.errors import DataError
from expert_router.knowledge.corpus import MAX_WORDS, TARGET_WORDS, read_corpus, sentences

if TYPE_CHECKING:
    from pathlib import Path


def corpus(folder: Path, **files: str) -> list[tuple[str, str]]:
    """Title and text of each passage; ``naps_md`` is the file ``naps.md``."""
    for name, content in files.items():
        (folder / ".".join(name.rsplit("_", 1))).write_text(content, "utf-8")
    return [(passage.title, passage.text) for passage in read_corpus(folder)]


def words(count: int, end: str = "") -> str:
    return " ".join(f"w{n}" for n in range(count)) + end


def prose(count: int, length: int = 15) -> str:
    """So many sentences of so many words."""
    return " ".join(f"Sentence {n} {words(length - 2, '.')}" for n in range(count))


# Markdown


def test_a_heading_starts_a_passage_and_names_it(tmp_path: Path) -> None:
    text = "# Sleep\n\n## REM sleep\nThe eyes move.\n\n### Naps ##\nTwenty minutes.\nNot more.\n"
    assert corpus(tmp_path, sleep_md=text) == [("REM sleep", "The eyes move."), ("Naps", "Twenty minutes. Not more.")]


def test_text_before_the_first_heading_has_the_files_name(tmp_path: Path) -> None:
    read = corpus(tmp_path, **{"famous-poor_sleepers_md": "Edison napped.\n# Dalí\nHe held a key."})
    assert read == [("famous poor sleepers", "Edison napped."), ("Dalí", "He held a key.")]


def test_a_heading_without_text_is_no_passage(tmp_path: Path) -> None:
    assert corpus(tmp_path, naps_md="# One\n\n# Two\ntext\n# Three") == [("Two", "text")]


@pytest.mark.parametrize("line", ["#hashtag", "    # indented code", "####### seven", "##", "a # b"])
def test_what_only_looks_like_a_heading_is_text(tmp_path: Path, line: str) -> None:
    assert corpus(tmp_path, a_md=f"# Title\nbefore\n{line}\nafter") == [("Title", f"before {line.strip()} after")]


@pytest.mark.parametrize(
    ("line", "title"), [("   ## Three spaces", "Three spaces"), ("# C#", "C#"), ("# *Model T* `1908`", "Model T 1908")]
)
def test_a_heading_is_read_as_its_author_meant_it(tmp_path: Path, line: str, title: str) -> None:
    assert corpus(tmp_path, a_md=f"{line}\ntext") == [(title, "text")]


@pytest.mark.parametrize(
    "block",
    [
        "```\n# no heading\n```",
        "```python\n# no heading\n```",
        "~~~\n# no heading\n~~~",
        "````\n```\n# no heading\n```\n````",
        "~~~\n```\n# no heading\n~~~",
        "```\n# no heading\n```not the end\n# nor this\n```",
    ],
)
def test_a_hash_in_a_block_of_code_is_no_heading_and_after_the_block_it_is(tmp_path: Path, block: str) -> None:
    titles = [title for title, _ in corpus(tmp_path, a_md=f"# One\n{block}\n# Two\ntext")]
    assert titles == ["One", "Two"]


def test_code_on_one_line_opens_no_block(tmp_path: Path) -> None:
    assert [title for title, _ in corpus(tmp_path, a_md="# One\n```x = 1```\n# Two\ntext")] == ["One", "Two"]


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ("**REM** is *one* of `four` __stages__.", "REM is one of four stages."),
        ("See [the log](docs/log.md) and ![a curve](curve.png).", "See the log and a curve."),
        ("[Band](https://en.wikipedia.org/wiki/Sleep_(band)) and more", "Band and more"),
        ("HLA-DQB1*06:02 or DRB1*10:01", "HLA-DQB1*06:02 or DRB1*10:01"),
        ("2*3*4 and snake_case_name", "2*3*4 and snake_case_name"),
        ("a * b * c [1] (2)", "a * b * c [1] (2)"),
    ],
)
def test_marks_of_markdown_go_and_the_text_stays(tmp_path: Path, marked: str, plain: str) -> None:
    assert corpus(tmp_path, a_md=marked) == [("a", plain)]


# Plain text


def test_paragraphs_of_text_are_gathered_up_to_a_passage(tmp_path: Path) -> None:
    paragraph = words(50)
    read = corpus(tmp_path, all_about_naps_txt="\n\n".join([paragraph] * 5))
    assert [title for title, _ in read] == ["all about naps"] * 3
    assert [len(text.split()) for _, text in read] == [100, 100, 50]


def test_a_paragraph_of_some_length_stays_whole(tmp_path: Path) -> None:
    paragraph = prose(12, length=MAX_WORDS // 12)
    assert len(paragraph.split()) > TARGET_WORDS
    assert corpus(tmp_path, a_txt=f"First.\n\n{paragraph}\n\nLast.") == [
        ("a", "First."),
        ("a", paragraph),
        ("a", "Last."),
    ]


def test_a_longer_paragraph_is_cut_between_sentences_and_no_word_is_lost(tmp_path: Path) -> None:
    paragraph = prose(60)
    read = [text for _, text in corpus(tmp_path, a_txt=paragraph.replace(". ", ".\n"))]
    assert len(read) > 5
    assert all(text.startswith("Sentence") and text.endswith(".") for text in read)
    assert all(len(text.split()) <= TARGET_WORDS for text in read)
    assert " ".join(read) == paragraph


def test_what_has_no_sentences_is_cut_between_words(tmp_path: Path) -> None:
    """A prompt must hold several passages whatever the file looks like."""
    table = words(1000)
    read = [text for _, text in corpus(tmp_path, a_txt=table)]
    assert all(len(text.split()) <= MAX_WORDS for text in read)
    assert " ".join(read) == table


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "content",
    [prose(20_000), words(300_000), "see [note and _this *or [that]( " * 20_000],
    ids=["sentences", "no sentences", "marks that never close"],
)
def test_a_huge_file_of_one_line_is_read_in_moments(tmp_path: Path, content: str) -> None:
    read = [text for _, text in corpus(tmp_path, a_md=content)]
    assert len(read) > 500
    assert all(len(text.split()) <= MAX_WORDS for text in read)
    assert " ".join(read).split() == content.split()


@pytest.mark.parametrize("ending", ["\r\n", "\n"])
def test_both_kinds_of_line_ending_are_read_alike(tmp_path: Path, ending: str) -> None:
    (tmp_path / "a.md").write_bytes(ending.join(["# One", words(80), "", words(80), "# Two", "text"]).encode())
    assert [(p.title, len(p.text.split())) for p in read_corpus(tmp_path)] == [("One", 80), ("One", 80), ("Two", 1)]


# Sentences


@pytest.mark.parametrize(
    "whole",
    [
        ["REM came first.", "Was it 1953?", "Yes!", "100 nights followed."],
        ['He said "Stop."', "Then he slept.", "(So did she.)", '"Why?"'],
        ["J. Allan Hobson and William C. Dement met Dr. Kleitman in St. Louis.", "They slept."],
        ["Symphony No. 2 and No. 10 put me to sleep.", "Did they you?", "No.", "They woke me."],
        ["It takes 1.5 hours, i.e. one cycle, e.g. at night.", "Then it ends..."],
    ],
)
def test_sentences_end_where_a_reader_ends_them(whole: list[str]) -> None:
    assert sentences(" ".join(whole)) == whole


@given(st.text("Ab1 .!?\"')(["))
def test_nothing_but_space_is_lost_between_sentences(text: str) -> None:
    assert "".join(sentences(text)).replace(" ", "") == text.replace(" ", "")


def test_an_empty_text_has_no_sentences() -> None:
    assert sentences("") == []


# Files and folders


def test_passages_come_in_the_order_of_the_files_names_and_of_the_text(tmp_path: Path) -> None:
    read = corpus(tmp_path, b_md="# B1\nx\n# B2\nx", c_txt="x", a_markdown="# A\nx")
    assert [title for title, _ in read] == ["A", "B1", "B2", "c"]


def test_ids_are_unique_also_for_files_of_one_name_in_several_folders(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "habits", tmp_path / "habits" / "old"):
        place.mkdir(exist_ok=True)
        (place / "naps.md").write_text("# One\nx\n# One\nx", "utf-8")
    assert [(p.id, p.file) for p in read_corpus(tmp_path)] == [
        ("habits/naps.md#1", "habits/naps.md"),
        ("habits/naps.md#2", "habits/naps.md"),
        ("habits/old/naps.md#1", "habits/old/naps.md"),
        ("habits/old/naps.md#2", "habits/old/naps.md"),
        ("naps.md#1", "naps.md"),
        ("naps.md#2", "naps.md"),
    ]


def test_only_texts_are_read_whatever_the_case_of_their_ending(tmp_path: Path) -> None:
    assert corpus(tmp_path, a_MD="yes", b_Txt="yes", c_csv="no", d_docx="no") == [("a", "yes"), ("b", "yes")]


def test_a_byte_order_mark_does_not_hide_the_first_heading(tmp_path: Path) -> None:
    assert corpus(tmp_path, a_md="\ufeff# Naps\ntext") == [("Naps", "text")]


def test_a_file_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes("# Café\nfine\n".encode() + "Schlaf für alle".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.md, line 3: not UTF-8 text\. Save the file as UTF-8\."):
        read_corpus(tmp_path)


@pytest.mark.parametrize("content", [None, "", "\n \n", "# Only a heading\n"])
def test_a_folder_without_text_says_what_to_put_there(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "a.md").write_text(content, "utf-8")
    with pytest.raises(DataError, match=r"holds no text: put files there that end in \.md, \.markdown, \.txt, \.pdf"):
        read_corpus(tmp_path)


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder of knowledge at .*missing"):
        read_corpus(tmp_path / "missing")


# PDF


def pdf(*pages: str) -> bytes:
    """A PDF file with a line of text for each line of each page."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} /MediaBox [0 0 612 792] >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, page in enumerate(pages):
        shown = " ".join(f"({line}) Tj T*" for line in page.split("\n"))
        content = f"BT /F1 12 Tf 72 720 Td 14 TL {shown} ET"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * number} 0 R >>",
            f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        ]
    file, offsets = "%PDF-1.4\n", []
    for number, each in enumerate(objects, start=1):
        offsets.append(len(file))
        file += f"{number} 0 obj\n{each}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    return (
        f"{file}xref\n0 {size}\n0000000000 65535 f \n{table}"
        f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(file)}\n%%EOF\n"
    ).encode()


def test_each_page_of_a_pdf_is_read_under_the_files_name(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    (tmp_path / "sleep_guide.pdf").write_bytes(pdf("REM sleep comes\nin cycles.", "", "Naps are short."))
    read = read_corpus(tmp_path)
    assert [(p.id, p.title, p.text) for p in read] == [
        ("sleep_guide.pdf#1", "sleep guide, page 1", "REM sleep comes in cycles."),
        ("sleep_guide.pdf#2", "sleep guide, page 3", "Naps are short."),
    ]


def test_a_full_page_of_a_pdf_becomes_several_passages(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    page = prose(40)
    (tmp_path / "a.pdf").write_bytes(pdf(page.replace(". ", ".\n")))
    read = read_corpus(tmp_path)
    assert {p.title for p in read} == {"a, page 1"}
    assert all(len(p.text.split()) <= TARGET_WORDS for p in read)
    assert " ".join(p.text for p in read) == page


@pytest.mark.parametrize("content", [b"", b"no PDF at all", pdf("text")[:300], pdf("text").replace(b"Kids", b"Cats")])
def test_a_damaged_pdf_is_named(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("pypdf")
    (tmp_path / "scan.pdf").write_bytes(content)
    with pytest.raises(DataError, match=r"scan\.pdf is not a readable PDF file|holds no text"):
        read_corpus(tmp_path)


ENCRYPTED = {
    "RC4": "/V 2 /R 3 /Length 128",
    "AES": "/V 5 /R 6 /Length 256 /OE <00> /UE <00> /Perms <00> /CF << /StdCF << /CFM /AESV3 >> >> /StmF /StdCF",
}


@pytest.mark.parametrize("how", ENCRYPTED.values(), ids=ENCRYPTED)
def test_a_pdf_with_a_password_is_named(tmp_path: Path, how: str) -> None:
    pytest.importorskip("pypdf")
    locked = f"/Encrypt << /Filter /Standard {how} /P -4 /O <{'00' * 48}> /U <{'00' * 48}> >> /ID [<00> <00>]"
    (tmp_path / "secret.pdf").write_bytes(pdf("text").replace(b"/Root", f"{locked} /Root".encode()))
    with pytest.raises(DataError, match=r"secret\.pdf is not a readable PDF file: .*(decrypted|AES)"):
        read_corpus(tmp_path)


def test_without_the_package_for_pdf_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    (tmp_path / "a.md").write_text("text", "utf-8")
    assert len(read_corpus(tmp_path)) == 1
    (tmp_path / "b.pdf").write_bytes(pdf("text"))
    with pytest.raises(DataError, match=re.escape("b.pdf needs one more package: pip install 'expert-router[pdf]'")):
        read_corpus(tmp_path)
