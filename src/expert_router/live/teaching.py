"""What the router learns of a new expert, and of those that were added before it and look alike."""

from __future__ import annotations

import random
from functools import cached_property
from typing import TYPE_CHECKING

from expert_router.catalogue import ROUTER_FOLDER, read_taught
from expert_router.data.labelled import LabelledQuestion, read_labelled
from expert_router.errors import DataError
from expert_router.routing.added import load_added
from expert_router.training.addition import Background, fit_addition
from expert_router.vectors import embed_texts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from expert_router.catalogue import Version
    from expert_router.routing.added import AddedHead
    from expert_router.serving.parts import Parts

BACKGROUND_TRAIN = 600
"""So many training questions stand for all; every calibration question is there."""


class Teacher:
    """Fits heads of added experts for the embedding router of ``parts``; other routers learn when they are built."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.fits = parts.settings.router.name == "embedding"

    def prepare(self) -> None:
        """Read the background now, so that the first new expert does not wait for it."""
        if self.fits:
            _ = self.background.principal

    @cached_property
    def background(self) -> Background:
        """The project's calibration questions and some of its training questions, as far as there are files of them.

        Raises ``DataError`` when there are none.
        """
        settings = self._parts.settings
        folder = settings.resolve(settings.paths.data) / "processed"
        train, calibration = (folder / f"routing_{split}.csv" for split in ("train", "calibration"))
        questions = read_labelled(calibration) if calibration.is_file() else []
        if train.is_file():
            all_of_them = read_labelled(train)
            sampled = random.Random(0).sample(all_of_them, min(BACKGROUND_TRAIN, len(all_of_them)))  # noqa: S311
            questions += sampled
        if not questions:
            raise DataError(
                f"The router learns a new expert by what sets it apart from other questions, and {folder} has none. "
                "They come from: expert-router prepare"
            )
        return self._embedded(questions)

    def heads(self, name: str, examples: Sequence[str], version: Version) -> dict[str, AddedHead]:
        """What the router learns: the new expert, and those of ``version`` that would claim its examples.

        Those that were taught to another router are taught to this one, too.
        """
        if not self.fits:
            return {}
        others = {other: folder for other, folder in version.added.items() if other != name}
        taught_to = {other: read_taught(folder) for other, folder in others.items()} | {name: list(examples)}
        sha256 = self._parts.encoder.sha256
        heads = {other: load_added(folder / ROUTER_FOLDER, sha256) for other, folder in others.items()}
        again = sorted(other for other, head in heads.items() if head is None or self._claims(head, examples))
        gone = version.hidden - taught_to.keys()  # another may take over their field
        return {each: self._fit(each, taught_to, gone) for each in (*again, name)}

    def _fit(self, name: str, taught_to: Mapping[str, list[str]], gone: frozenset[str]) -> AddedHead:
        added = [
            LabelledQuestion(question, frozenset([other]), other)
            for other, questions in taught_to.items()
            if other != name
            for question in questions
        ]
        background = self.background.without(gone)
        background = background.and_(self._embedded(added)) if added else background
        return fit_addition(name, taught_to[name], background, self._parts.encoder, self._parts.artifact.calibration)

    def _claims(self, head: AddedHead, examples: Sequence[str]) -> bool:
        vectors = self._parts.encoder.encode_all(list(examples))
        return any(
            head.probability(vector, text, 0.0) >= self._parts.artifact.accept
            for vector, text in zip(vectors, examples, strict=True)
        )

    def _embedded(self, questions: list[LabelledQuestion]) -> Background:
        cache = self._parts.settings.resolve(self._parts.settings.paths.cache) / "background"
        texts = [question.query for question in questions]
        vectors = embed_texts(texts, self._parts.encoder, cache, label="read the background", progress=False)
        return Background(questions, vectors.astype("float32"))
