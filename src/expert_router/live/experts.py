"""Add, remove and roll back experts of a running system: a new version on disk, then a new deployment in one step.

The router learns a new expert from its examples alone (``training.addition``), against questions that were labelled for
the others; nothing else is fitted again. Other processes that serve the same catalogue notice its new version within
``WATCH_INTERVAL_S``.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from expert_router.artifacts import load_experts
from expert_router.catalogue import ROUTER_FOLDER, Catalogue, read_taught
from expert_router.data.labelled import LabelledQuestion, read_labelled
from expert_router.errors import ExpertRouterError, UnknownModelError
from expert_router.live.proposal import check
from expert_router.routing.added import load_added
from expert_router.serving.build import Parts, build_deployment, build_library, build_router
from expert_router.training.addition import Background, fit_addition
from expert_router.vectors import embed_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from expert_router.catalogue import Version
    from expert_router.live.proposal import Proposal
    from expert_router.routing.added import AddedHead
    from expert_router.serving.dispatcher import Dispatcher
    from expert_router.settings import Settings
    from expert_router.types import Expert

logger = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.2
BACKGROUND_TRAIN = 600
"""So many training questions stand for all; every calibration question is there."""
FEW_EXAMPLES = 8
ENOUGH_EXAMPLES = 20
REACHED = {1: 0.0, 4: 0.0, 8: 0.0, 20: 0.0}
CLAIMED_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Change:
    """A version that counts now; ``routed_s`` is how long it took until questions were routed by it."""

    version: Version
    routed_s: float
    warnings: tuple[str, ...] = ()


class LiveExperts:
    """Without a ``dispatcher`` it changes the catalogue alone, for whoever serves it. Thread-safe."""

    def __init__(self, parts: Parts, dispatcher: Dispatcher | None = None) -> None:
        self._parts = parts
        self._dispatcher = dispatcher
        self._lock = threading.Lock()
        self.catalogue = Catalogue(parts.settings.resolve(parts.settings.paths.catalogue))

    @property
    def settings(self) -> Settings:
        return self._parts.settings

    def experts(self) -> dict[str, Expert]:
        """Whom the current version lets answer."""
        return self.catalogue.current().experts(self._shipped)

    def add(self, proposal: Proposal, *, replacing: bool = False) -> Change:
        """Teach the router the expert, write a version with it, and route by it.

        Raises ``InvalidRequestError`` when the proposal is wrong. Whatever is raised, nothing was changed.
        """
        started = time.perf_counter()
        with self._lock:
            self.prepare()  # may take seconds the first time, which other processes need not wait for
            with self.catalogue.changing():
                version = self.catalogue.current()
                known = version.experts(self._shipped)
                proposal = check(proposal, set(known) - {proposal.name} if replacing else known)
                heads = self._heads(proposal, version)
                writes: dict[str, Callable[[Path], None]] = {name: _write(head) for name, head in heads.items()}
                writes[proposal.name] = _write(heads.get(proposal.name), proposal)
                hide = {proposal.name} & self._shipped.keys()
                version = self.catalogue.change(f"add {proposal.name}", put=writes, hide=hide)
                self._deploy(version, unread=frozenset([proposal.name]) if proposal.knowledge else frozenset())
            routed_s = time.perf_counter() - started
            if proposal.knowledge:
                self._deploy(version)
            return Change(version, routed_s, tuple(self._warnings(proposal)))

    def remove(self, name: str) -> Change:
        """Raises ``UnknownModelError`` when there is no such expert."""
        started = time.perf_counter()
        with self._lock, self.catalogue.changing():
            self._require(name, self.catalogue.current().experts(self._shipped))
            version = self.catalogue.change(f"remove {name}", drop=[name], hide={name} & self._shipped.keys())
            self._deploy(version)
            return Change(version, time.perf_counter() - started)

    def rollback(self, to: int | None = None) -> Change:
        """Let an earlier version count again, by default the one before. Raises ``InvalidRequestError``."""
        started = time.perf_counter()
        with self._lock, self.catalogue.changing():
            version = self.catalogue.rollback(to)
            self._deploy(version)
            return Change(version, time.perf_counter() - started)

    def refresh(self) -> bool:
        """Deploy the version that counts, when another process changed it; whether it was another."""
        with self._lock:
            if self._dispatcher is None or self.catalogue.current_number() == self._dispatcher.deployed.version:
                return False
            self._deploy(self.catalogue.current())
            return True

    async def watch(self) -> None:
        """Notice what other processes change, until cancelled; what cannot be deployed is said once and left."""
        refused = None
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            try:
                await asyncio.to_thread(self.refresh)
                refused = None
            except (ExpertRouterError, OSError) as error:
                if str(error) != refused:
                    logger.warning("the catalogue's new version is not served", extra={"reason": str(error)})
                refused = str(error)

    def prepare(self) -> None:
        """Read the background now, so that the first new expert does not wait for it."""
        if self._parts.settings.router.name == "embedding":
            _ = self._background

    @cached_property
    def _shipped(self) -> Mapping[str, Expert]:
        settings = self.settings
        return load_experts(settings.resolve(settings.paths.experts), settings.home)

    @cached_property
    def _background(self) -> Background:
        settings = self.settings
        folder = settings.resolve(settings.paths.data) / "processed"
        train, calibration = (folder / f"routing_{split}.csv" for split in ("train", "calibration"))
        questions = read_labelled(calibration) if calibration.is_file() else []
        if train.is_file():
            all_of_them = read_labelled(train)
            sampled = random.Random(0).sample(all_of_them, min(BACKGROUND_TRAIN, len(all_of_them)))  # noqa: S311
            questions += sampled
        return self._embedded(questions)

    def _embedded(self, questions: list[LabelledQuestion]) -> Background:
        cache = self.settings.resolve(self.settings.paths.cache) / "background"
        texts = [question.query for question in questions]
        vectors = embed_texts(texts, self._parts.encoder, cache, label="read the background", progress=False)
        return Background(questions, vectors.astype("float32"))

    def _heads(self, proposal: Proposal, version: Version) -> dict[str, AddedHead]:
        """What the router learns: the new expert, and those added before that would claim its examples.

        Those that were taught to another router are taught to this one, too.
        """
        if self.settings.router.name != "embedding":
            return {}
        others = {name: folder for name, folder in version.added.items() if name != proposal.name}
        taught_to = {name: read_taught(folder) for name, folder in others.items()}
        heads = {
            name: load_added(folder / ROUTER_FOLDER, self._parts.encoder.sha256) for name, folder in others.items()
        }
        again = {name for name, head in heads.items() if head is None or self._claims(head, proposal)}
        taught_to[proposal.name] = proposal.taught()
        gone = version.hidden - taught_to.keys()
        return {name: self._fit(name, taught_to, gone) for name in (*sorted(again), proposal.name)}

    def _fit(self, name: str, taught_to: Mapping[str, list[str]], gone: frozenset[str]) -> AddedHead:
        added = [
            LabelledQuestion(question, frozenset([other]), other)
            for other, questions in taught_to.items()
            if other != name
            for question in questions
        ]
        background = self._background.without(gone)  # another may take over their field
        background = background.and_(self._embedded(added)) if added else background
        return fit_addition(name, taught_to[name], background, self._parts.encoder, self._parts.artifact.calibration)

    def _claims(self, head: AddedHead, proposal: Proposal) -> bool:
        encoder = self._parts.encoder
        texts = proposal.taught()
        return any(
            head.probability(vector, text, 0.0) >= self._parts.artifact.accept
            for vector, text in zip(encoder.encode_all(texts), texts, strict=True)
        )

    def _deploy(self, version: Version, unread: frozenset[str] = frozenset()) -> None:
        """``unread`` are experts whose knowledge is not read yet: they answer from memory until it is."""
        experts = version.experts(self._shipped)
        for name in unread:
            experts[name] = replace(experts[name], knowledge=None)
        parts = Parts(self.settings, experts, version=version, progress=False, like=self._parts)
        if self._dispatcher is not None:
            examples, router = self._dispatcher.deployed.examples, build_router(parts)
            library = build_library(parts)
            self._dispatcher.deployed = build_deployment(parts, router, library, examples=examples)
            logger.info("deployed", extra={"version": version.number, "change": version.change})
        self._parts = parts

    def _warnings(self, proposal: Proposal) -> Iterable[str]:
        count = len(proposal.examples)
        if count < FEW_EXAMPLES:
            known = max(number for number in REACHED if number <= max(count, 1))
            yield (
                f"Taught with {count or 'no'} examples: about {REACHED[known]:.0%} of its questions will reach it, "
                f"where {ENOUGH_EXAMPLES} bring {REACHED[ENOUGH_EXAMPLES]:.0%} (expert-router bench additions)."
            )
        if self.settings.router.name != "embedding":
            return
        examples = proposal.taught()
        for name, claimed in self._claimed_by_others(proposal.name, examples).items():
            if claimed >= CLAIMED_SHARE * len(examples):
                yield (
                    f"{claimed} of its {len(examples)} examples are for {name} as well, so questions like them will "
                    "be answered by both. More examples that are not, or expert-router train router, tell them apart."
                )

    def _claimed_by_others(self, own: str, examples: list[str]) -> dict[str, int]:
        router = build_router(self._parts)
        scores = [router.score(text).experts for text in examples]
        accept = router.thresholds.accept
        return {name: sum(score[name] >= accept for score in scores) for name in router.experts if name != own}

    def _require(self, name: str, known: Iterable[str]) -> None:
        if name not in set(known):
            raise UnknownModelError(f"There is no expert {name!r}. Known: {', '.join(known)}.", param="name")


def _write(head: AddedHead | None, proposal: Proposal | None = None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        if proposal is not None:
            proposal.write(folder)
        if head is not None:
            head.save(folder / ROUTER_FOLDER)

    return write
