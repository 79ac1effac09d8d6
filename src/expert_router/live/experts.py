"""Add, remove and roll back experts of a running system: a new version on disk, then a new deployment in one step.

The router learns a new expert from its examples alone (``training.addition``), against questions that were labelled for
the others; nothing else is fitted again. Other processes that serve the same catalogue notice its new version within
``WATCH_INTERVAL_S``.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from expert_router.artifacts import load_experts
from expert_router.catalogue import ROUTER_FOLDER, Catalogue, same_expert
from expert_router.errors import ExpertRouterError, InvalidRequestError, UnknownModelError
from expert_router.live.proposal import check
from expert_router.live.teaching import Teacher
from expert_router.serving.build import build_deployment, build_library, build_router
from expert_router.serving.parts import Parts

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
FEW_EXAMPLES = 8
ENOUGH_EXAMPLES = 20
REACHED = {0: 0.25, 4: 0.76, 8: 0.83, 20: 0.86}
"""How many questions of a new field reach its expert by the number of examples: ``expert-router bench additions``."""
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
        self._teacher = Teacher(parts)
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
            self._teacher.prepare()  # may take seconds the first time, which other processes need not wait for
            with self.catalogue.changing():
                before = self.catalogue.current()
                known = before.experts(self._shipped)
                proposal = check(proposal, set(known) - {proposal.name} if replacing else known)
                heads = self._teacher.heads(proposal.name, proposal.taught(), before)
                writes: dict[str, Callable[[Path], None]] = {name: _write(head) for name, head in heads.items()}
                writes[proposal.name] = _write(heads.get(proposal.name), proposal)
                hide = {proposal.name} & self._shipped.keys()  # one that ships is replaced
                version = self.catalogue.change(f"add {proposal.name}", put=writes, hide=hide)
                self._deploy(version, unread=proposal.name)
                routed_s = time.perf_counter() - started
                if proposal.knowledge:
                    try:
                        self._deploy(version)
                    except BaseException:
                        self._deploy(before)
                        raise
            return Change(version, routed_s, tuple(self._warnings(proposal)))

    def remove(self, name: str) -> Change:
        """Raises ``UnknownModelError`` when there is no such expert."""
        started = time.perf_counter()
        with self._lock, self.catalogue.changing():
            if name not in (known := self.experts()):
                raise UnknownModelError(f"There is no expert {name!r}. Known: {', '.join(known)}.", param="name")
            version = self.catalogue.change(f"remove {name}", drop=[name], hide={name} & self._shipped.keys())
            self._deploy(version)
            return Change(version, time.perf_counter() - started)

    def equip(self, name: str, install: Callable[[Path], None], *, trained: Version) -> Change:
        """Let ``install`` put an adapter that has proven itself into the folder of an added expert.

        Raises ``InvalidRequestError`` when the expert is not the one any more that was trained.
        """
        started = time.perf_counter()
        with self._lock, self.catalogue.changing():
            version = self.catalogue.current()
            if name not in version.added or not same_expert(version.added[name], trained.added[name]):
                raise InvalidRequestError(f"{name!r} was changed while its adapter was trained: train it again.")
            version = self.catalogue.change(f"train {name}", put={name: install})
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
        """Be ready to learn, so that the first new expert does not wait."""
        self._teacher.prepare()

    @cached_property
    def _shipped(self) -> Mapping[str, Expert]:
        settings = self.settings
        return load_experts(settings.resolve(settings.paths.experts), settings.home)

    def _deploy(self, version: Version, unread: str | None = None) -> None:
        """What was deployed stays when this raises. ``unread`` names whose texts wait: it answers from memory."""
        experts = version.experts(self._shipped)
        if unread is not None:
            experts[unread] = replace(experts[unread], knowledge=None)
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
            known = max(number for number in REACHED if number <= count)
            taught = f"{count or 'no'} example{'' if count == 1 else 's'}"
            yield (
                f"Taught with {taught}: about {REACHED[known]:.0%} of its questions will reach it, where "
                f"{ENOUGH_EXAMPLES} bring {REACHED[ENOUGH_EXAMPLES]:.0%} (expert-router bench additions)."
            )
        if not self._teacher.fits:
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


def _write(head: AddedHead | None, proposal: Proposal | None = None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        if proposal is not None:
            proposal.write(folder)
        if head is not None:
            head.save(folder / ROUTER_FOLDER)

    return write
