"""What the encoder learns to find: questions, the text that answers each, and texts that look alike and do not.

Questions were written for a passage, or their key tells which of the first that are found answers. The sentences that
hold the key are what should be closest; other sentences of the same passage, and those of passages that look alike,
should not (Karpukhin et al., Dense Passage Retrieval, 2020: the hard negatives).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tqdm import tqdm

from expert_router.knowledge.corpus import sentences
from expert_router.knowledge.index import titled, whole
from expert_router.training.examples import holds_key, passage_holds

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from expert_router.ports import Knowledge
    from expert_router.training.examples import QuestionAnswer
    from expert_router.types import Found, Passage

SEARCHED = 16
SURELY_FIRST = 3
"""Where only a key tells which passage answers, it must be among the first that are found to be believed."""
MOST_ALIKE = 8
WHOLE_SHARE = 0.3
"""So often the whole passage is what should be close, else a sentence of it."""
BESIDE_SHARE = 0.25
"""So often a text to keep away from is of the same passage, which teaches the excerpt; else of another."""
NEGATIVES = 2


@dataclass(frozen=True, slots=True)
class Reading:
    """Texts under their titles, as they are embedded; ``whole`` is the passage.

    ``answering`` are its sentences with the key, ``beside`` its others, ``alike`` those of passages without the key.
    """

    question: str
    answering: tuple[str, ...]
    whole: str
    beside: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()

    @property
    def own(self) -> frozenset[str]:
        """What is no negative, whoever brings it."""
        return frozenset([*self.answering, self.whole])

    def positive(self, rng: random.Random) -> str:
        return self.whole if rng.random() < WHOLE_SHARE else rng.choice(self.answering)

    def negatives(self, rng: random.Random) -> list[str]:
        picked = []
        for _ in range(NEGATIVES):
            near = self.beside if self.beside and rng.random() < BESIDE_SHARE else self.alike
            if near or self.beside:
                picked.append(rng.choice(near or self.beside))
        return picked


def build_readings(
    expert: str,
    questions: Sequence[QuestionAnswer],
    passages: Sequence[Passage],
    knowledge: Knowledge,
    *,
    progress: bool = False,
) -> list[Reading]:
    """One for each question of which a sentence of a known passage holds the key; ``passages`` are the expert's."""
    by_title = {passage.title: passage for passage in passages}
    readings = []
    for item in tqdm(questions, desc=f"look alike, {expert}", unit="question", disable=None if progress else True):
        found = knowledge.search(expert, item.question, limit=SEARCHED) if any(item.keys) else []
        passage = by_title.get(item.passage) if item.passage else _first_that_answers(item, found)
        if passage is None:
            continue
        said = sentences(passage.text)
        answering = [line for line in said if holds_key(line, item.keys)]
        if not answering:
            continue
        alike = [
            titled(hit.passage, sentences(hit.excerpt or hit.passage.text)[0])
            for hit in found
            if hit.passage is not passage and not passage_holds(hit.passage, item.keys)
        ]
        readings.append(
            Reading(
                item.question,
                tuple(titled(passage, line) for line in answering),
                whole(passage),
                tuple(titled(passage, line) for line in said if line not in answering),
                tuple(alike[:MOST_ALIKE]),
            )
        )
    return readings


def _first_that_answers(item: QuestionAnswer, found: Sequence[Found]) -> Passage | None:
    return next((hit.passage for hit in found[:SURELY_FIRST] if passage_holds(hit.passage, item.keys)), None)
