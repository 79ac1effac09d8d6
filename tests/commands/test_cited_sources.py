"""What the terminal says of the passages that an answer is from."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from cli import CommandLine

from expert_router.commands.ask import print_answer
from expert_router.engines.echo import EchoEngine
from expert_router.facade import ExpertRouter
from expert_router.serving.parts import fetch_model
from expert_router.settings import load_settings
from expert_router.types import Chunk, Usage
from support import (
    ANSWER_KEYS,
    BENZ,
    BOTH_QUESTION,
    NAPS,
    OTHER_QUESTION,
    ROOT,
    SLEEP_QUESTION,
    STAGES,
    FixedKnowledge,
    build,
    make_home,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from pathlib import Path

    from expert_router.types import Expert, GenerationParams, Message

STAGES_LINE = "[1] REM sleep: what happens (sleep-stages.md)"
NAPS_LINE = "[2] Naps (habits/naps.md)"
TEXTS = {
    "sleep/stages.md": "# REM sleep\nIn REM sleep the eyes dart about under closed lids.\n",
    "cars/early.md": "# Carl Benz\nCarl Benz patented the first car in January 1886.\n",
}


class ReciteEngine(EchoEngine):
    """Says what each expert is given to say, whatever it is asked."""

    def __init__(self, lines: Mapping[str, str]) -> None:
        super().__init__()
        self._lines = lines

    async def stream(
        self,
        expert: Expert,
        messages: Sequence[Message],  # noqa: ARG002
        params: GenerationParams,  # noqa: ARG002
    ) -> AsyncGenerator[Chunk]:
        yield Chunk(self._lines[expert.name])
        yield Chunk("", "stop", Usage(1, 1))


async def said(capsys: pytest.CaptureFixture[str], question: str, **lines: str) -> tuple[str, list[str]]:
    """Standard output, and the lines beside it below who answers."""
    knowledge = FixedKnowledge({"sleep": (STAGES, NAPS), "cars": (BENZ,)})
    with ExpertRouter(build(ReciteEngine(lines), knowledge=knowledge), default_max_tokens=256) as system:
        text = await print_answer(system, question)
    printed = capsys.readouterr()
    assert printed.out == f"{text}\n"
    who, *others = printed.err.splitlines()
    assert who.startswith("[")
    return printed.out, others


async def test_cited_passages_are_named_beside_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    out, lines = await said(capsys, SLEEP_QUESTION, sleep="Naps help [2]. Eyes move [1], they do [1].")
    assert out == "Naps help [2]. Eyes move [1], they do [1].\n"
    assert lines == [STAGES_LINE, NAPS_LINE]


async def test_what_was_only_looked_at_is_not_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert (await said(capsys, SLEEP_QUESTION, sleep="Naps help [2], but not [7]."))[1] == [NAPS_LINE]
    assert (await said(capsys, SLEEP_QUESTION, sleep="I don't know: the texts I have do not say."))[1] == []


async def test_several_experts_count_their_own_so_each_line_says_whose_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, lines = await said(capsys, BOTH_QUESTION, cars="Benz began [1] [2].", sleep="Naps help [2].")
    assert out == "**Car history**\n\nBenz began [1] [2].\n\n**Sleep science**\n\nNaps help [2].\n"
    assert lines == ["cars [1] Carl Benz (early-cars.md)", f"sleep {NAPS_LINE}"]


async def test_an_answer_without_sources_cites_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert (await said(capsys, OTHER_QUESTION, general="Paris [1]."))[1] == []


@pytest.fixture(scope="module")
def reading_cli(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """A checkout whose experts have one text each, read with the shipped encoder."""
    home = make_home(tmp_path_factory.mktemp("checkout"))
    settings = load_settings("default")
    fetch_model(settings, settings.router.encoder, progress=False)
    cache: Path = home / "cache"
    cache.mkdir()
    (cache / "weights").symlink_to(settings.resolve(settings.paths.cache) / "weights")
    shutil.rmtree(home / "data" / "knowledge", ignore_errors=True)
    for name, text in TEXTS.items():
        file = home / "data" / "knowledge" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    return CommandLine(
        home,
        {
            "EXPERT_ROUTER_KNOWLEDGE__PASSAGES": "3",
            "EXPERT_ROUTER_PATHS__CACHE": str(cache),
            "EXPERT_ROUTER_ROUTER__TUNED_ENCODER": str(ROOT / "artifacts" / "encoder"),
        },
    )


def test_ask_names_the_text_that_its_answer_is_from(reading_cli: CommandLine) -> None:
    done = reading_cli.run("ask", f"{SLEEP_QUESTION} [1]")
    assert done.status == 0
    assert done.out.startswith("[Sleep science] You asked: ")
    assert done.error.splitlines()[1:] == ["[1] REM sleep (stages.md)"]


def test_chat_names_it_turn_by_turn(reading_cli: CommandLine) -> None:
    done = reading_cli.run("chat", stdin=f"{SLEEP_QUESTION} [1]\n/model cars\nWho was Benz? [1]\n")
    lines = [line for line in done.error.splitlines() if line.startswith("[1]")]
    assert lines == ["[1] REM sleep (stages.md)", "[1] Carl Benz (early.md)"]
    assert "[1] REM sleep (stages.md)" not in done.out


def test_json_and_batches_carry_the_passages(reading_cli: CommandLine) -> None:
    answer = json.loads(reading_cli.run("ask", SLEEP_QUESTION, "--json").out)
    assert list(answer) == ANSWER_KEYS
    [source] = answer["sources"]
    assert source.pop("score") > 0
    assert source == {
        "expert": "sleep",
        "number": 1,
        "id": "stages.md#1",
        "title": "REM sleep",
        "file": "stages.md",
        "text": "In REM sleep the eyes dart about under closed lids.",
    }
    questions = "".join(json.dumps({"query": query}) + "\n" for query in (SLEEP_QUESTION, OTHER_QUESTION))
    batch = reading_cli.run("ask", "--input", "-", stdin=questions)
    assert [len(json.loads(line)["sources"]) for line in batch.out.splitlines()] == [1, 0]
