from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from expert_router.engines.echo import EchoEngine
from expert_router.evaluation.variants import WithoutAnswers, build_variants
from expert_router.serving.deployment import Library
from expert_router.serving.parts import Parts
from expert_router.settings import Settings
from expert_router.types import Abstention, Adapter, ChatRequest, Expert, Message, Served
from support import BENZ, EXPERTS, NAPS, SLEEP, STAGES, FixedKnowledge, lexical_router

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from expert_router.evaluation.variants import Variants
    from expert_router.types import Chunk, GenerationParams

KNOWLEDGE = FixedKnowledge({"sleep": (STAGES, NAPS)})
QUESTION = "How long should a nap be?"


class AdaptedEngine(EchoEngine):
    """Says which adapter it answers with, as a real engine would, before the echo."""

    def served(self, expert: Expert) -> Served:
        adapter = expert.adapters.get("echo")
        return Served("echo", adapter.sha256 if adapter else None)

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        name = "adapted" if self.served(expert).adapter else "bare"
        async for chunk in super().stream(replace(expert, title=name), messages, params):
            yield chunk


def variants(*, adapted: bool, reads: bool) -> Variants:
    adapters = {"echo": Adapter(Path("adapter"), "a" * 64)} if adapted else {}
    rules = {"echo": Abstention("a" * 12, 0.0, 1.0, 0.0)} if adapted else {}
    sleep = replace(SLEEP, adapters=adapters, abstention=rules, knowledge=Path("sleep"))
    parts = Parts(Settings(), {**EXPERTS, "sleep": sleep}, progress=False)
    library = Library(KNOWLEDGE, 2) if reads else None
    return build_variants(parts, lexical_router(), AdaptedEngine(), library, {QUESTION: ("twenty minutes",)})


@pytest.mark.parametrize(
    ("adapted", "reads", "there"),
    [
        (False, False, ("base", "instructions")),
        (False, True, ("base", "base+knowledge")),
        (True, False, ("base", "adapter")),
        (True, True, ("base", "base+knowledge", "adapter", "adapter+knowledge")),
    ],
)
def test_the_variants_are_those_that_exist_and_the_last_one_serves(adapted: bool, reads: bool, there: object) -> None:
    assert variants(adapted=adapted, reads=reads).of("sleep") == there


def test_an_expert_with_nothing_to_read_has_no_variant_that_reads() -> None:
    assert variants(adapted=True, reads=True).of("cars") == ("base", "instructions")


async def test_an_adapters_rule_of_when_to_refuse_is_left_out_with_it() -> None:
    built = variants(adapted=True, reads=True)
    assert built.by_name["adapter+knowledge"].experts["sleep"].abstention
    assert not built.by_name["base+knowledge"].experts["sleep"].abstention


async def test_each_variant_leaves_out_what_its_name_leaves_out() -> None:
    built = variants(adapted=True, reads=True)

    async def ask(name: str) -> tuple[str, int]:
        """Who answered, and from how many passages."""
        request = ChatRequest((Message("user", QUESTION),), built.model(name, "sleep"))
        answer = await built.by_name[name].ask(request)
        return answer.text.split()[0], sum(len(sources.found) for sources in answer.sources)

    assert {name: await ask(name) for name in built.of("sleep")} == {
        "base": ("[bare]", 0),
        "base+knowledge": ("[bare]", 2),
        "adapter": ("[adapted]", 0),
        "adapter+knowledge": ("[adapted]", 2),
    }
    assert built.by_name["adapter+knowledge"] is built.configured


async def test_withheld_has_the_other_passages_alone() -> None:
    built = variants(adapted=True, reads=True)
    assert set(built.withheld) == {"base+knowledge", "adapter+knowledge"}
    for dispatcher in built.withheld.values():
        answer = await dispatcher.ask(ChatRequest((Message("user", QUESTION),), "sleep"))
        assert [found.passage for sources in answer.sources for found in sources.found] == [STAGES]


def test_without_answers_takes_the_next_best_passages_up_to_the_limit() -> None:
    knowledge = WithoutAnswers(FixedKnowledge({"sleep": (NAPS, STAGES, BENZ)}), {QUESTION: ("TWENTY", "unheard of")})
    assert [hit.passage for hit in knowledge.search("sleep", QUESTION, limit=2)] == [STAGES, BENZ]
    assert [hit.passage for hit in knowledge.search("sleep", QUESTION, limit=1)] == [STAGES]
    assert [hit.passage for hit in knowledge.search("sleep", "another", limit=2)] == [NAPS, STAGES]


def test_a_key_in_the_title_of_a_passage_answers_too() -> None:
    knowledge = WithoutAnswers(FixedKnowledge({"cars": (BENZ, NAPS)}), {"Who?": ("Carl Benz",)})
    assert [hit.passage for hit in knowledge.search("cars", "Who?")] == [NAPS]
