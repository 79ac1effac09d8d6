"""What may become an expert, what is refused and why, and that it is written as it was meant."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest

from expert_router.artifacts import load_expert
from expert_router.catalogue import EXAMPLES_FILE, read_taught
from expert_router.errors import DataError, InvalidRequestError
from expert_router.knowledge.corpus import read_corpus
from expert_router.live import proposal as module
from expert_router.live.proposal import (
    MOST_CHARACTERS,
    MOST_EXAMPLES,
    Proposal,
    TaughtExample,
    check,
    read_examples,
    read_knowledge,
)

if TYPE_CHECKING:
    from pathlib import Path

ROSES = TaughtExample("When do I prune roses?", "In winter.", "winter")


def proposed(name: str = "gardening", *examples: TaughtExample, **others: str) -> Proposal:
    return Proposal(name, examples=examples or (ROSES,), **others)


def refused(proposal: Proposal, known: tuple[str, ...] = ()) -> tuple[str | None, str]:
    with pytest.raises(InvalidRequestError) as error:
        check(proposal, known)
    return error.value.param, error.value.message


# Names


@pytest.mark.parametrize("name", ["gardening", "a", "wine_2024", "x" * 64])
def test_a_plain_name_may_be(name: str) -> None:
    assert check(proposed(name), ["sleep"]) == proposed(name)


@pytest.mark.parametrize(
    "name",
    [
        *("auto", "general", "none", "", "Gardening", "gar den", "gar-den", "_g", "2g"),
        *("gärten", "園芸", "../up", "a/b", "a.b", "a\n", "a|b", "x" * 65),
    ],
)
def test_another_name_is_refused_and_says_what_a_name_is(name: str) -> None:
    param, message = refused(proposed(name))
    assert param == "name"
    assert "must be lower-case letters, digits and _" in message
    assert "none of auto, general, none" in message


def test_a_name_that_is_taken_is_refused_and_says_what_to_do() -> None:
    assert refused(proposed(), ("gardening",)) == (
        "name",
        "There is an expert 'gardening' already. Remove it first, or replace it (`--replace`, or `replace` over HTTP).",
    )


# Examples and texts


def test_space_around_texts_and_empty_and_doubled_examples_go() -> None:
    examples = (
        TaughtExample("  Why? ", " old "),
        TaughtExample("   ", "an answer to nothing"),
        TaughtExample("Why?", " new ", " key\n"),
        TaughtExample("How?"),
    )
    checked = check(proposed("a", *examples, title=" T ", description="\n", instructions=" be "), ())
    assert checked == Proposal("a", "T", "", "be", (TaughtExample("Why?", "new", "key"), TaughtExample("How?")))


@pytest.mark.parametrize("question", ["", " ", "\n\t"])
def test_without_examples_and_without_a_description_there_is_nothing_to_learn(question: str) -> None:
    param, message = refused(proposed("a", TaughtExample(question), description=question))
    assert (param, message.startswith("Give examples")) == ("examples", True)


def test_a_description_alone_is_enough() -> None:
    alone = check(Proposal("a", title="Roses", description="All about roses."), ())
    assert alone.examples == ()
    assert alone.taught() == ["Roses: All about roses."]
    assert check(proposed(), ()).taught() == [ROSES.question]


def test_too_many_examples_are_refused_and_as_many_as_may_be_are_not() -> None:
    many = [TaughtExample(f"Why {number}?") for number in range(MOST_EXAMPLES + 1)]
    assert refused(proposed("a", *many)) == ("examples", f"More than {MOST_EXAMPLES} examples: {len(many)}.")
    assert len(check(proposed("a", *many[1:]), ()).examples) == MOST_EXAMPLES


@pytest.mark.parametrize("field", ["question", "answer", "key"])
def test_an_example_that_is_too_long_is_refused_and_shown(field: str) -> None:
    long = {"question": "Why?", field: "w" * (MOST_CHARACTERS + 1)}
    param, message = refused(proposed("a", TaughtExample(**long)))
    assert param == "examples"
    assert f"has {MOST_CHARACTERS + 1} characters, and at most {MOST_CHARACTERS} are read: {'w' * 60}…" in message
    fits = proposed("a", TaughtExample(**{**long, field: "w" * MOST_CHARACTERS}))
    assert check(fits, ()) == fits


def test_a_description_that_is_too_long_is_refused() -> None:
    assert refused(proposed(description="d" * (MOST_CHARACTERS + 1)))[0] == "description"


@pytest.mark.parametrize("field", ["title", "description", "instructions", "examples"])
def test_half_a_character_is_refused(field: str) -> None:
    """As a terminal hands over what is not UTF-8."""
    half = "caf\udce9"
    proposal = proposed("a", TaughtExample(half)) if field == "examples" else proposed("a", **{field: half})
    assert refused(proposal) == (field, f"Not UTF-8 text: {half!r}.")


def test_too_much_knowledge_is_refused() -> None:
    half = b"x" * (module.MOST_KNOWLEDGE_BYTES // 2)
    assert (
        refused(Proposal("a", description="d", knowledge={"a.md": half, "b.md": half, "c.md": b"x"}))[0] == "knowledge"
    )


# The folder

ODD = 'a "quoted" \\back\\slash\nline\ttab \x7f \x01 \x1f \x00 🌱 ü 園芸 \u2028 \u0085 {x} # = [a] \'\'\' """'


def test_a_folder_is_an_expert_that_says_what_was_proposed(tmp_path: Path) -> None:
    odd = Proposal("a", ODD, ODD, ODD, tuple(TaughtExample(f"{n} {ODD}", ODD, ODD) for n in range(5)))
    checked = check(odd, ())
    folder = tmp_path / "a"
    checked.write(folder)
    expert = load_expert(folder / "expert.toml", folder)
    assert (expert.title, expert.description, expert.instructions) == (ODD, ODD, ODD)
    assert expert.examples == tuple(example.question for example in checked.examples[:3])
    assert expert.knowledge is None
    assert read_taught(folder) == checked.taught()
    assert sorted(path.name for path in folder.iterdir()) == [EXAMPLES_FILE, "expert.toml"]
    assert read_examples(folder / EXAMPLES_FILE) == checked.examples


@pytest.mark.parametrize("character", [*map(chr, range(0x20)), "\x7f", "\x80", "\u2029", "\ufeff", "\U0010ffff"])
def test_every_character_comes_through(tmp_path: Path, character: str) -> None:
    folder = tmp_path / "a"
    proposed("a", title=f"x{character}y").write(folder)
    assert tomllib.loads((folder / "expert.toml").read_text("utf-8"))["title"] == f"x{character}y"


def test_what_was_not_said_is_made_of_the_name(tmp_path: Path) -> None:
    folder = tmp_path / "wine_making"
    proposed("wine_making").write(folder)
    expert = load_expert(folder / "expert.toml", folder)
    assert (expert.title, expert.description) == ("Wine making", "Questions about wine making.")
    assert expert.instructions.startswith("You are an expert in wine making. ")


def test_nothing_stays_of_the_expert_that_is_replaced_and_its_files_are_not_written_into(tmp_path: Path) -> None:
    folder, older = tmp_path / "a", tmp_path / "older.toml"
    Proposal("a", description="d", knowledge={"old.md": b"# Old\n\nOld text.", "deep/old.md": b"Old."}).write(folder)
    older.hardlink_to(folder / "expert.toml")
    before = older.read_bytes()
    Proposal("a", description="new", knowledge={"new.md": b"# New\n\nNew text."}).write(folder)
    expert = load_expert(folder / "expert.toml", folder)
    assert expert.knowledge == folder / "knowledge"
    assert [passage.title for passage in read_corpus(folder / "knowledge")] == ["New"]
    assert older.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\xff\xfe", "knowledge/a.md, line 1: not UTF-8 text. Save the file as UTF-8."),
        (b" \n", "knowledge holds no text"),
    ],
)
def test_knowledge_that_could_not_be_served_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        Proposal("a", description="d", knowledge={"a.md": content}).write(tmp_path / "a")
    assert error.value.param == "knowledge"
    assert error.value.message.startswith(f"The knowledge cannot be read: {why}")


# Files of examples


def written(tmp_path: Path, content: str | bytes, name: str = "examples.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        'question,answer,key\n"When do I prune roses?",In winter.,winter\n',
        "question,answer,key\r\nWhen do I prune roses?,In winter.,winter\r\n",
        "\ufeffquestion,answer,key\n When do I prune roses? , In winter. ,winter",
        '\ufeff"question","answer","key"\n"When do I prune roses?","In winter.","winter"',
        "key,source,answer,question\nwinter,a book,In winter.,When do I prune roses?\n",
        "question,answer,key\nWhen do I prune roses?,In winter.,winter\n\n,,\n ,an answer to nothing,\n",
    ],
    ids=["plain", "windows", "bom", "bom and quotes", "order", "blank rows"],
)
@pytest.mark.parametrize("name", ["examples.csv", "EXAMPLES.CSV", "examples.txt"])
def test_a_csv_with_a_heading_is_read(tmp_path: Path, content: str, name: str) -> None:
    assert read_examples(written(tmp_path, content, name)) == (ROSES,)


def test_answers_and_keys_may_be_missing_and_questions_have_commas_and_lines(tmp_path: Path) -> None:
    path = written(tmp_path, 'question,answer\n"Roses, when?\nAnd how?"\nWhy?,So.\n')
    assert read_examples(path) == (TaughtExample("Roses, when?\nAnd how?"), TaughtExample("Why?", "So."))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_text_has_a_question_a_line(tmp_path: Path, end: str) -> None:
    text = end.join(["\ufeffRoses, when?", "", '  "Why" is; my leaf\u2028yellow?  ', ""])
    path = written(tmp_path, text, "questions.txt")
    assert read_examples(path) == (TaughtExample("Roses, when?"), TaughtExample('"Why" is; my leaf\u2028yellow?'))


def test_a_line_of_a_text_may_be_longer_than_a_field_of_a_csv(tmp_path: Path) -> None:
    """Whether it may be an example is for ``check`` to say."""
    (example,) = read_examples(written(tmp_path, "w" * 200_000, "questions.txt"))
    assert "200000 characters" in refused(proposed("a", example))[1]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", ", line 1: the columns must have a name, separated by commas, and one must be question; found: nothing."),
        ("When do I prune roses?\nWhy?\n", ", line 1: the columns must have a name, separated by commas, and one must"),
        ("question;answer\nWhy?;So.\n", ", line 1: the columns must have a name, separated by commas, and one must be"),
        ("Question,Answer\nWhy?,So.\n", "found: Question, Answer."),
        ("question,answer\n", " has no questions."),
        ("question\n \n\n", " has no questions."),
        ("question\nRoses, when?\n", ", line 2: more fields than columns. Put what has commas in double quotes."),
        ('question\nWhy?\n"Never closed,\nHow?\n', ", line 4: unexpected end of data"),
        ('"question\nWhy?\n', "unexpected end of data"),
        ('question\n"Why"? So.\n', ", line 2: "),
        ("question\n" + "w" * 200_000, ", line 2: field larger than field limit (131072)"),
        (b"question\nWhy?\ncaf\xe9?\n", ", line 3: not UTF-8 text. Save the file as UTF-8."),
        ("question\nWhy?\n".encode("utf-16"), ", line 1: not UTF-8 text. Save the file as UTF-8."),
    ],
)
def test_a_csv_that_is_not_one_names_file_and_line(tmp_path: Path, content: str | bytes, why: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(DataError) as error:
        read_examples(path)
    assert error.value.message.startswith(str(path))
    assert why in error.value.message


@pytest.mark.parametrize("content", ["", "\n \n\t\n", "\ufeff"])
def test_a_text_without_a_question_is_refused(tmp_path: Path, content: str) -> None:
    path = written(tmp_path, content, "questions.txt")
    with pytest.raises(DataError, match=r"questions\.txt has no questions"):
        read_examples(path)


def test_a_file_that_is_not_there_or_no_file_or_huge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv cannot be read: No such file"):
        read_examples(tmp_path / "gone.csv")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_examples(tmp_path)
    huge = tmp_path / "huge.csv"
    with huge.open("wb") as file:
        file.truncate(module.MOST_EXAMPLES_BYTES + 1)
    with pytest.raises(DataError, match=r"huge\.csv is larger than \d+ bytes"):
        read_examples(huge)


# Folders of knowledge


def test_the_texts_below_a_folder_are_read_by_their_path(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    written(tmp_path, "# Roses\n\nPrune.", "a.md")
    written(tmp_path, "Sow.", "deep/b.TXT")
    written(tmp_path, b"\x00", "picture.png")
    assert read_knowledge(tmp_path) == {"a.md": b"# Roses\n\nPrune.", "deep/b.TXT": b"Sow."}


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.md", b"\xff", "a.md, line 1: not UTF-8 text"),
        ("a.md", b"\n", "holds no text: put files there that end in .md"),
        ("a.png", b"x", "holds no text: put files there that end in .md"),
        ("a.pdf", b"no PDF", "a.pdf is not a readable PDF file"),
    ],
)
def test_a_folder_without_text_is_refused(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    written(tmp_path, content, name)
    with pytest.raises(DataError) as error:
        read_knowledge(tmp_path)
    assert why in error.value.message


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no folder of knowledge at"):
        read_knowledge(tmp_path / "gone")
