"""Experts come and go in a system that runs: what is routed where, what a reader sees, and what failures leave."""

from __future__ import annotations

import asyncio
import csv
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.artifacts import load_experts
from expert_router.catalogue import Catalogue
from expert_router.errors import ConfigError, DataError, InvalidRequestError, UnknownModelError
from expert_router.live.experts import FEW_EXAMPLES, LiveExperts
from expert_router.live.proposal import Proposal, TaughtExample
from expert_router.serving.build import build_system
from expert_router.serving.parts import Parts, build_parts
from expert_router.settings import EngineSettings, KnowledgeSettings, PathsSettings, RouterSettings, Settings
from support import CARS_QUESTION, OTHER_QUESTION, ROOT, SLEEP_QUESTION, WordEncoder, make_home, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from expert_router.serving.deployment import Deployment
    from expert_router.serving.dispatcher import Dispatcher
    from expert_router.types import Decision

GARDENING_QUESTION = "When is the best time to prune an old apple tree?"
COOKING = (
    "How long do I boil an egg?",
    "How do I thicken a gravy?",
    "At how many degrees do I roast a chicken?",
    "what makes a sponge cake sink in the middle",
    "Can I freeze cooked rice?",
    "How much salt goes into a litre of pasta water?",
    "Why does my mayonnaise split?",
    "how do you knead bread dough by hand",
)


def gardening(count: int = 20, **others: object) -> Proposal:
    with (ROOT / "data" / "gardening" / "examples.csv").open(encoding="utf-8", newline="") as file:
        examples = tuple(TaughtExample(row["question"]) for row in csv.DictReader(file))[:count]
    return Proposal("gardening", examples=examples, **others)  # type: ignore[arg-type]


def taught_with(name: str, *questions: str, **others: object) -> Proposal:
    return Proposal(name, examples=tuple(map(TaughtExample, questions)), **others)  # type: ignore[arg-type]


@dataclass(frozen=True)
class System:
    """A running system, and what changes its experts."""

    live: LiveExperts
    dispatcher: Dispatcher

    @property
    def deployed(self) -> Deployment:
        return self.dispatcher.deployed

    @property
    def catalogue(self) -> Catalogue:
        return self.live.catalogue

    def decide(self, question: str) -> Decision:
        return asyncio.run(self.deployed.decide(question))

    def asked(self, question: str) -> tuple[str, ...]:
        """Who is needed."""
        return self.decide(question).experts


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the shipped router, a part of what it was fitted on, and experts that read a page each."""
    folder = make_home(tmp_path_factory.mktemp("checkout"))
    picked = random.Random(0)
    for split, count in (("train", 150), ("calibration", 150)):
        heading, *rows = (ROOT / f"data/processed/routing_{split}.csv").read_text("utf-8").splitlines()
        lines = [heading, *picked.sample([row for row in rows if row.count('"') == 0], count)]
        (folder / f"data/processed/routing_{split}.csv").write_text("\n".join(lines) + "\n", "utf-8")
    for name, text in (("sleep", "# REM sleep\n\nThe eyes dart."), ("cars", "# Carl Benz\n\nHe built the first car.")):
        (folder / "data" / "knowledge" / name).mkdir(parents=True)
        (folder / "data" / "knowledge" / name / "page.md").write_text(text, "utf-8")
    return folder


def settings_of(home: Path, catalogue: Path, router: str, passages: int = 0) -> Settings:
    artifacts = ROOT / "artifacts"
    return Settings(
        home=home,
        engine=EngineSettings(name="echo"),
        router=RouterSettings(name=router, artifact=artifacts / "router", tuned_encoder=artifacts / "encoder"),
        knowledge=KnowledgeSettings(passages=passages),
    ).model_copy(update={"paths": PathsSettings(catalogue=catalogue)})  # over what the environment says


@pytest.fixture(scope="module")
def loaded(home: Path) -> Parts:
    """The encoder and the router's artifact, read once for all tests."""
    parts = Parts(settings_of(home, home / "none", "embedding"), load_experts(home / "experts", home), progress=False)
    _ = parts.encoder, parts.artifact, parts.terms
    return parts


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    return tmp_path / "catalogue"


def start(settings: Settings, like: Parts | None = None) -> System:
    """As ``serve`` does."""
    built = build_parts(settings)
    parts = Parts(settings, built.experts, version=built.version, progress=False, like=like)
    dispatcher = build_system(parts, logged=False)
    return System(LiveExperts(parts, dispatcher), dispatcher)


@pytest.fixture
def system(home: Path, loaded: Parts, catalogue: Path) -> System:
    return start(settings_of(home, catalogue, "embedding"), loaded)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the ten examples that the lexical router is tested on."""
    return make_home(tmp_path_factory.mktemp("small"))


@pytest.fixture
def lexical(small: Path, catalogue: Path) -> System:
    return start(settings_of(small, catalogue, "lexical"))


# Adding


def test_an_added_expert_is_routed_to_at_once_and_the_others_as_before(system: System) -> None:
    assert system.asked(GARDENING_QUESTION) == ()
    change = system.live.add(gardening(title="Gardening"))
    assert (change.version.number, change.version.change) == (1, "add gardening")
    assert change.routed_s > 0
    assert change.warnings == ()
    assert system.asked(GARDENING_QUESTION) == ("gardening",)
    assert "Gardening" in system.decide(GARDENING_QUESTION).reason
    assert system.asked(SLEEP_QUESTION) == ("sleep",)
    assert system.asked(CARS_QUESTION) == ("cars",)
    assert system.asked(OTHER_QUESTION) == ()
    assert (system.deployed.version, list(system.deployed.trained)) == (1, ["cars", "sleep", "gardening"])
    assert system.live.experts()["gardening"].title == "Gardening"


def test_it_is_still_there_after_a_restart(system: System, loaded: Parts) -> None:
    system.live.add(gardening())
    again = start(system.live.settings, loaded)
    assert again.deployed.version == 1
    assert again.asked(GARDENING_QUESTION) == ("gardening",)
    assert again.decide(GARDENING_QUESTION).scores == system.decide(GARDENING_QUESTION).scores


def test_two_added_experts_are_told_apart(system: System) -> None:
    system.live.add(taught_with("kitchen", *COOKING))
    before = system.catalogue.current()
    system.live.add(gardening())
    assert system.asked(GARDENING_QUESTION) == ("gardening",)
    assert system.asked("How long should I boil eggs?") == ("kitchen",)
    assert before.experts({}) == {"kitchen": before.experts({})["kitchen"]}  # the version before is whole


def test_an_expert_is_replaced_when_that_is_asked_for(system: System) -> None:
    system.live.add(gardening(title="Old", knowledge={"old.md": b"# Old\n\nOld text."}))
    with pytest.raises(InvalidRequestError, match="There is an expert 'gardening' already"):
        system.live.add(gardening(title="New"))
    system.live.add(taught_with("gardening", *COOKING, title="New"), replacing=True)
    assert system.deployed.trained["gardening"].title == "New"
    assert system.deployed.trained["gardening"].knowledge is None
    assert system.asked("How long should I boil eggs?") == ("gardening",)
    assert system.asked(GARDENING_QUESTION) == ()


def test_a_shipped_expert_is_replaced_and_gone_back_to(system: System) -> None:
    shipped = system.decide(SLEEP_QUESTION).scores
    system.live.add(taught_with("sleep", *COOKING, title="Kitchen"), replacing=True)
    assert list(system.deployed.trained) == ["cars", "sleep"]
    assert sorted(system.deployed.router.experts) == ["cars", "sleep"]
    assert system.asked("How long should I boil eggs?") == ("sleep",)
    assert system.asked(SLEEP_QUESTION) == ()
    assert system.asked(CARS_QUESTION) == ("cars",)
    system.live.rollback()
    assert system.decide(SLEEP_QUESTION).scores == shipped


# Removing and going back


def test_what_a_removed_expert_was_for_is_for_nobody(system: System) -> None:
    system.live.add(gardening())
    for name, question in (("gardening", GARDENING_QUESTION), ("sleep", SLEEP_QUESTION)):
        change = system.live.remove(name)
        assert change.version.change == f"remove {name}"
        assert system.decide(question).kind == "general"
        assert name not in system.deployed.experts
        with pytest.raises(UnknownModelError, match=f"There is no expert '{name}'. Known: "):
            system.live.remove(name)
    assert system.asked(CARS_QUESTION) == ("cars",)


def test_all_may_be_removed_and_one_added_then(system: System) -> None:
    for name in ("sleep", "cars"):
        system.live.remove(name)
    assert system.decide(SLEEP_QUESTION).kind == system.decide("And how long?").kind == "general"
    system.live.add(gardening())
    assert system.asked(GARDENING_QUESTION) == ("gardening",)


def test_another_expert_may_take_over_the_field_of_one_that_was_removed(system: System) -> None:
    """Questions of that field are no examples of what is not its own."""
    system.live.remove("sleep")
    with (ROOT / "data/processed/routing_test.csv").open(encoding="utf-8", newline="") as file:
        asked = [row["query"] for row in csv.DictReader(file) if row["experts"] == "sleep"]
    random.Random(0).shuffle(asked)
    system.live.add(taught_with("dreams", *asked[:20]))
    reached = [question for question in asked[20:60] if system.asked(question) == ("dreams",)]
    assert len(reached) >= 24


def test_each_version_of_the_router_has_a_name_of_its_own(system: System) -> None:
    names = [system.dispatcher.deployed.router.version]
    for change in (lambda: system.live.add(gardening()), lambda: system.live.remove("cars"), system.live.rollback):
        change()
        names.append(system.dispatcher.deployed.router.version)
    assert len(set(names)) == 3
    assert names[3] == names[1]


def test_rollback_brings_back_what_was_there(system: System) -> None:
    system.live.add(gardening())
    scores = system.decide(GARDENING_QUESTION).scores
    system.live.remove("gardening")
    assert system.live.rollback().version.number == 1
    assert system.decide(GARDENING_QUESTION).scores == scores
    assert system.live.rollback(0).version.number == 0
    assert system.asked(GARDENING_QUESTION) == ()
    with pytest.raises(InvalidRequestError, match=r"There is no version 9\. Known: 0, 1, 2"):
        system.live.rollback(9)
    assert system.deployed.version == 0


# What it reads


def test_what_it_reads_is_found_by_search(home: Path, loaded: Parts, catalogue: Path) -> None:
    system = start(settings_of(home, catalogue, "embedding", passages=2), loaded)
    pages = {"fruit.md": b"# Strawberries\n\nStraw keeps them clean.\n\n# Apple trees\n\nPrune them in winter."}
    before = system.deployed
    system.live.add(gardening(knowledge=pages))
    expert = system.deployed.trained["gardening"]
    found = asyncio.run(system.deployed.look_up(expert, [GARDENING_QUESTION]))
    assert (found[0].passage.title, found[0].passage.text) == ("Apple trees", "Prune them in winter.")
    sleep = asyncio.run(system.deployed.look_up(system.deployed.trained["sleep"], [SLEEP_QUESTION]))
    assert [each.passage.title for each in sleep] == ["REM sleep"]
    (same,) = asyncio.run(before.look_up(before.trained["sleep"], [SLEEP_QUESTION]))  # requests that run go on
    assert same.passage == sleep[0].passage
    system.live.remove("gardening")
    assert {name for name, each in system.deployed.trained.items() if each.knowledge} == {"cars", "sleep"}


# Warnings


def test_a_description_alone_works_and_is_warned_of(system: System) -> None:
    text = "Growing flowers, fruit and vegetables in a garden: strawberries, pruning, sowing, soil, compost and pests."
    (warning,) = system.live.add(Proposal("gardening", description=text)).warnings
    assert warning.startswith("Taught with no examples: about ")
    alone = system.decide("Which compost do strawberries need, and which soil?").scores
    other = system.decide(OTHER_QUESTION).scores
    assert alone is not None
    assert other is not None
    assert alone.experts["gardening"] > 2 * other.experts["gardening"]


@pytest.mark.parametrize("count", [1, FEW_EXAMPLES - 1, FEW_EXAMPLES])
def test_few_examples_are_warned_of(lexical: System, count: int) -> None:
    warnings = lexical.live.add(gardening(count)).warnings
    assert [warning.startswith(f"Taught with {count} example") for warning in warnings] == [True] * (count < 8)


def test_examples_that_another_expert_claims_are_warned_of(system: System) -> None:
    with (ROOT / "data/processed/routing_test.csv").open(encoding="utf-8", newline="") as file:
        asked = [row["query"] for row in csv.DictReader(file) if row["experts"] == "sleep"][:10]
    (warning,) = system.live.add(taught_with("dreams", *asked)).warnings
    assert "of its 10 examples are for sleep as well, so questions like them will be answered by both" in warning


# Refusals and failures


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("proposal", "param"),
    [
        (gardening(0), "examples"),
        (taught_with("Big Garden", "Why?"), "name"),
        (taught_with("sleep", "Why?"), "name"),
        (gardening(2, knowledge={"a.md": b"# Roses\n\ncaf\xe9"}), "knowledge"),
        (gardening(2, knowledge={"a.md": b"\n"}), "knowledge"),
    ],
    ids=["no examples", "name", "taken", "not UTF-8", "no text"],
)
def test_what_is_refused_changes_nothing(system: System, proposal: Proposal, param: str) -> None:
    system.live.add(taught_with("kitchen", *COOKING[:2]))
    deployed, before = system.deployed, files(system.catalogue.folder)
    with pytest.raises(InvalidRequestError) as refused:
        system.live.add(proposal)
    assert refused.value.param == param
    assert files(system.catalogue.folder) == before
    assert system.deployed is deployed
    assert not system.live.refresh()


def test_a_version_that_cannot_be_deployed_does_not_count(system: System) -> None:
    version = system.live.add(gardening()).version
    system.live.remove("gardening")
    deployed = system.deployed
    (version.added["gardening"] / "expert.toml").unlink()
    with pytest.raises(ConfigError, match="is not an expert manifest"):
        system.live.rollback()
    assert system.catalogue.current_number() == 2
    assert system.deployed is deployed


class NoRosesEncoder(WordEncoder):
    """Breaks down at texts about roses."""

    def encode_all(self, texts: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        if any("Roses" in text for text in texts):
            raise ConfigError("Roses cannot be read.")
        return super().encode_all(texts)


class NoRoses(Parts):
    @cached_property
    def encoder(self) -> Any:
        return NoRosesEncoder()


def test_without_other_questions_nothing_can_be_learnt(
    tmp_path: Path, home: Path, loaded: Parts, catalogue: Path
) -> None:
    shutil.copytree(home, tmp_path / "bare", ignore=shutil.ignore_patterns("routing_*.csv"))
    bare = start(settings_of(tmp_path / "bare", catalogue, "embedding"), loaded)
    with pytest.raises(DataError, match=r"and .*processed has none\. They come from: expert-router prepare"):
        bare.live.add(gardening())
    assert bare.live.catalogue.current().number == 0


def test_an_expert_whose_texts_cannot_be_embedded_is_not_served(home: Path, catalogue: Path) -> None:
    """It is routed to before they are."""
    settings = settings_of(home, catalogue, "lexical", passages=2)
    like = NoRoses(settings, {}, progress=False)
    _ = like.encoder
    system = start(settings, like)
    before = system.deployed
    with pytest.raises(ConfigError, match="Roses cannot be read"):
        system.live.add(gardening(knowledge={"a.md": b"# Roses\n\nThey climb."}))
    assert (system.catalogue.current_number(), system.deployed.version) == (0, 0)
    assert system.deployed.trained == before.trained
    assert system.deployed.router.experts == before.router.experts
    assert not system.live.refresh()
    system.live.add(gardening(knowledge={"a.md": b"# Apple trees\n\nPrune them in winter."}))
    assert system.asked(GARDENING_QUESTION) == ("gardening",)


def test_where_nothing_can_be_written_everything_is_as_it_was(small: Path, catalogue: Path) -> None:
    lexical = start(settings_of(small, catalogue, "lexical"))
    deployed = lexical.deployed
    catalogue.mkdir()
    (catalogue / "versions").write_text("a file", "utf-8")
    for change in (lambda: lexical.live.add(gardening()), lambda: lexical.live.remove("sleep")):
        with pytest.raises(ConfigError, match="cannot be written"):
            change()
    assert lexical.deployed is deployed


# Several processes


def test_what_another_process_changes_is_seen_at_the_next_look(system: System, loaded: Parts) -> None:
    settings = system.live.settings
    command = LiveExperts(Parts(settings, loaded.experts, progress=False, like=loaded))
    assert not system.live.refresh()
    command.add(gardening())
    assert system.asked(GARDENING_QUESTION) == ()
    assert system.live.refresh()
    assert system.asked(GARDENING_QUESTION) == ("gardening",)
    assert not system.live.refresh()
    system.live.remove("sleep")
    assert set(command.experts()) == {"cars", "gardening"}
    command.rollback(0)
    assert system.live.refresh()
    assert set(system.deployed.trained) == {"cars", "sleep"}
    assert not command.refresh()  # it serves nobody


async def test_a_server_that_watches_follows_and_says_once_what_it_cannot_serve(
    lexical: System, caplog: pytest.LogCaptureFixture
) -> None:
    command = LiveExperts(build_parts(lexical.live.settings))
    watching = asyncio.create_task(lexical.live.watch())
    try:
        command.add(gardening())
        await until(lambda: lexical.deployed.version == 1, within_s=10)
        pointer = lexical.catalogue.folder / "CURRENT"
        pointer.write_text("nonsense", "ascii")
        await until(lambda: len(caplog.records) == 1, within_s=10)
        await asyncio.sleep(0.5)
        assert [record.message for record in caplog.records] == ["the catalogue's new version is not served"]
        assert lexical.deployed.version == 1
        pointer.write_text("0", "ascii")
        await until(lambda: lexical.deployed.version == 0, within_s=10)
    finally:
        watching.cancel()
        await asyncio.wait({watching})


def test_changes_at_once_all_take_effect(small: Path, catalogue: Path) -> None:
    """Each by one that has its own view of the catalogue, as processes do."""
    settings = settings_of(small, catalogue, "lexical")
    lives = [LiveExperts(build_parts(settings)) for _ in range(6)]
    changes = [
        *(lambda live=live, n=n: live.add(taught_with(f"e{n}", f"What is e{n}?")) for n, live in enumerate(lives[:4])),
        lambda: lives[4].remove("sleep"),
        lambda: lives[5].remove("cars"),
    ]
    with ThreadPoolExecutor(len(lives)) as pool:
        for done in [pool.submit(change) for change in changes]:
            done.result()
    assert Catalogue(catalogue).current_number() == len(lives)
    assert set(LiveExperts(build_parts(settings)).experts()) == {"e0", "e1", "e2", "e3"}


def test_of_two_that_add_the_same_name_at_once_one_is_refused(small: Path, catalogue: Path) -> None:
    settings = settings_of(small, catalogue, "lexical")
    lives = [LiveExperts(build_parts(settings)) for _ in range(4)]
    with ThreadPoolExecutor(len(lives)) as pool:
        done = [pool.submit(live.add, gardening()) for live in lives]
    refused = [each.exception() for each in done if each.exception() is not None]
    assert len(refused) == 3
    assert all(isinstance(error, InvalidRequestError) for error in refused)
    assert Catalogue(catalogue).current_number() == 1


# Routers


def test_the_lexical_router_learns_too(lexical: System) -> None:
    change = lexical.live.add(taught_with("gardening", "Prune roses when?", "Why do roses wilt?", "Which roses climb?"))
    assert lexical.asked("How do I prune old roses?") == ("gardening",)
    assert lexical.asked(SLEEP_QUESTION) == ("sleep",)
    assert sorted(path.name for path in change.version.added["gardening"].iterdir()) == ["examples.csv", "expert.toml"]
    lexical.live.remove("sleep")
    assert lexical.asked(SLEEP_QUESTION) == ()
    lexical.live.remove("gardening")
    assert lexical.asked("How do I prune old roses?") == ()


def test_the_lexical_router_learns_of_a_description_alone(lexical: System) -> None:
    lexical.live.add(Proposal("gardening", description="Prune roses, mulch roses, water roses."))
    assert lexical.asked("prune roses") == ("gardening",)


def test_who_was_added_under_another_router_is_taught_with_the_next_one(
    home: Path, loaded: Parts, lexical: System, caplog: pytest.LogCaptureFixture
) -> None:
    lexical.live.add(gardening())
    system = start(settings_of(home, lexical.catalogue.folder, "embedding"), loaded)
    (warning,) = caplog.messages
    assert warning.startswith("gardening was taught to another router")
    assert system.asked(GARDENING_QUESTION) == ()
    system.live.add(taught_with("kitchen", *COOKING))
    assert system.asked(GARDENING_QUESTION) == ("gardening",)
    assert system.asked("How long should I boil eggs?") == ("kitchen",)


# Readers


def test_a_reader_sees_one_version_or_another_and_never_a_mix(lexical: System) -> None:
    done = threading.Event()
    mixed: list[Deployment] = []
    seen: set[int] = set()

    def read() -> None:
        while not done.is_set():
            deployed = lexical.deployed
            seen.add(deployed.version)
            known = set(deployed.trained)
            if set(deployed.router.experts) != known or set(deployed.policy.titles) != known:
                mixed.append(deployed)
            version = lexical.catalogue.read(deployed.version)
            if set(version.added) != known - {"sleep", "cars"}:
                mixed.append(deployed)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(10):
            lexical.live.add(gardening(2))
            lexical.live.remove("gardening")
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert mixed == []
    assert len(seen) > 10


def test_a_request_keeps_the_experts_that_it_began_with(system: System) -> None:
    system.live.add(gardening())
    began = system.deployed
    system.live.remove("gardening")
    shutil.rmtree(system.catalogue.folder / "versions" / "2")
    assert asyncio.run(began.decide(GARDENING_QUESTION)).experts == ("gardening",)
    assert "gardening" in began.experts
