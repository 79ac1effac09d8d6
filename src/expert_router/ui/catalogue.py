"""What the server told the page, and how those who answer are called and coloured there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from expert_router.types import AUTO, GENERAL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from expert_router.types import Explanation
    from expert_router.ui.client import Failed, Model

COLOURS = 8
"""How many expert colours style.css defines."""
GENERAL_TITLE = "General (no expert)"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What the server told: the names that can answer, and why questions went where they did.

    ``models`` are in the server's order; titles and colours follow from it. ``explanations`` are by what the person
    said, the question last: whoever routes knows nothing else.
    """

    models: tuple[Model, ...] = ()
    explanations: Mapping[tuple[str, ...], Explanation | Failed] = field(default_factory=dict)

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(model.name for model in self.models if model.name not in {AUTO, GENERAL})

    @property
    def choices(self) -> list[tuple[str, str]]:
        """(title, name) of everything that a question can be sent to."""
        experts = [(self.title(name), name) for name in self.experts]
        return [("Automatic", AUTO), *experts, ("General", GENERAL)]

    @property
    def examples(self) -> list[str]:
        """Up to two questions of each expert, taking turns, then of the others."""
        ordered = sorted(self.models, key=lambda model: model.name in {AUTO, GENERAL})
        return [model.examples[turn] for turn in (0, 1) for model in ordered if len(model.examples) > turn][:6]

    def title(self, name: str) -> str:
        if name == GENERAL:
            return GENERAL_TITLE
        return next((model.title for model in self.models if model.name == name), name.replace("_", " ").capitalize())

    def colour(self, name: str) -> str:
        """The CSS class of a name's colour."""
        if name in self.experts:
            return f"er-c{self.experts.index(name) % COLOURS}"
        return "er-none"
