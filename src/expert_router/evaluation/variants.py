"""The experts with and without what makes them experts: each variant is a dispatcher of the same settings.

They share router and engine, so that nothing differs but what the variant leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from expert_router.serving.build import assemble
from expert_router.training.examples import passage_holds
from expert_router.types import GENERAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from expert_router.ports import Engine, Knowledge, Router
    from expert_router.serving.deployment import Library
    from expert_router.serving.dispatcher import Dispatcher
    from expert_router.serving.parts import Parts
    from expert_router.types import Found

BASE = "base"
BASE_KNOWLEDGE = "base+knowledge"
ADAPTER = "adapter"
ADAPTER_KNOWLEDGE = "adapter+knowledge"
INSTRUCTIONS = "instructions"
VARIANTS = (BASE, BASE_KNOWLEDGE, ADAPTER, ADAPTER_KNOWLEDGE)

SEARCHED = 40
"""So deep retrieval is asked when the passages that hold the answer are left out."""


class WithoutAnswers:
    """Knowledge that has everything but the answers: passages that hold a question's key are not found.

    ``keys`` by question, word for word; other questions find what there is.
    """

    def __init__(self, knowledge: Knowledge, keys: Mapping[str, Sequence[str]]) -> None:
        self._knowledge = knowledge
        self._keys = keys

    def search(self, expert: str, question: str, history: Sequence[str] = (), limit: int = 3) -> list[Found]:
        found = self._knowledge.search(expert, question, history, max(SEARCHED, limit))
        return [hit for hit in found if not passage_holds(hit.passage, self._keys.get(question, ()))][:limit]


@dataclass(frozen=True, slots=True)
class Variants:
    """Who can be asked. ``configured`` is the dispatcher that serves; ``withheld`` has passages without the answers.

    Closing ``configured`` closes the engine and the router that all share.
    """

    configured: Dispatcher
    by_name: Mapping[str, Dispatcher]
    withheld: Mapping[str, Dispatcher]

    def of(self, expert: str) -> tuple[str, ...]:
        """The variants that exist for an expert, the plainest first; the last is the one that serves.

        Raises ``NotReadyError`` when the expert cannot be served.
        """
        here = self.configured.experts[expert]
        adapted = self.configured.engine.served(here).adapter is not None
        reads = BASE_KNOWLEDGE in self.by_name and here.knowledge is not None
        there = {
            BASE: True,
            INSTRUCTIONS: not adapted and not reads,
            BASE_KNOWLEDGE: reads,
            ADAPTER: adapted,
            ADAPTER_KNOWLEDGE: adapted and reads,
        }
        return tuple(name for name, exists in there.items() if exists)

    def model(self, variant: str, expert: str) -> str:
        """The name to ask for."""
        return GENERAL if variant == BASE else expert


def build_variants(
    parts: Parts, router: Router, engine: Engine, library: Library | None, keys: Mapping[str, Sequence[str]]
) -> Variants:
    """``keys``: what answers each question, to leave it out."""
    bare = {name: replace(expert, adapters={}, serve_as={}, abstention={}) for name, expert in parts.experts.items()}
    configured = assemble(parts, router, engine, library=library)
    from_memory = assemble(parts, router, engine, library=None)
    by_name = {BASE: from_memory, ADAPTER: from_memory, INSTRUCTIONS: from_memory}
    if library is None:
        return Variants(configured, by_name, {})
    by_name[BASE_KNOWLEDGE] = assemble(parts, router, engine, library=library, experts=bare)
    by_name[ADAPTER_KNOWLEDGE] = configured
    without = replace(library, knowledge=WithoutAnswers(library.knowledge, keys))
    withheld = {
        BASE_KNOWLEDGE: assemble(parts, router, engine, library=without, experts=bare),
        ADAPTER_KNOWLEDGE: assemble(parts, router, engine, library=without),
    }
    return Variants(configured, by_name, withheld)
