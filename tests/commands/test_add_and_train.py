"""``expert add --train``: an added expert gets an adapter that has proven itself, or answers on without one."""

from __future__ import annotations

import csv
import json
import shlex
from typing import TYPE_CHECKING

import pytest
from cli import CommandLine, one_line
from tiny_gguf import Quantisation, write_lora

from expert_router.artifacts import ADAPTER_WEIGHTS, install_adapter, read_artifact, sha256_of
from expert_router.catalogue import Catalogue
from expert_router.commands.expert_train import _split
from expert_router.engines.echo import EchoEngine
from expert_router.errors import InvalidRequestError
from expert_router.live.experts import LiveExperts
from expert_router.live.proposal import Proposal, TaughtExample
from expert_router.serving.build import assemble, build_router
from expert_router.serving.parts import build_parts
from expert_router.settings import load_settings
from expert_router.training.examples import QuestionAnswer
from support import ROOT
from training_home import BASE, make_training_home, training_environment, write_training_data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

TREES = ("oak", "ash", "elm", "fir", "yew", "bay", "box", "fig", "gum", "nut")
ROWS = [
    (f"{ask} the {tree}?", f"The {tree} is {said}.", said)
    for tree in TREES
    for ask, said in (("How is", "old"), ("Is", "tall"))
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Its base can learn to be sure of an answer."""
    return make_training_home(tmp_path / "checkout", quantisation=Quantisation.Q8_0, blocks=2, certainty=20.0)


@pytest.fixture
def cli(home: Path) -> CommandLine:
    return CommandLine(home, {**training_environment(home), "EXPERT_ROUTER_PATHS__CATALOGUE": str(home / "catalogue")})


@pytest.fixture
def catalogue(home: Path) -> Catalogue:
    return Catalogue(home / "catalogue")


def write_rows(path: Path, rows: Iterable[tuple[str, str, str]] = ROWS) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("question", "answer", "key"), *rows])
    return str(path)


def add(cli: CommandLine, *options: str, rows: Iterable[tuple[str, str, str]] = ROWS) -> tuple[str, ...]:
    return ("expert", "add", "trees", "--examples", write_rows(cli.home / "trees.csv", rows), "--train", *options)


# Before anything is changed


def test_too_few_answered_examples_are_refused_before_anything_is_changed(
    cli: CommandLine, catalogue: Catalogue
) -> None:
    said = one_line(cli.run(*add(cli, rows=[*ROWS[:19], ("Is the pear?", "", "")])))
    assert said == (
        "--train needs at least 20 examples to learn from, and 19 of 20 are of use. Give a CSV with the columns "
        "question, answer and key: each row needs an answer. Nothing was changed; without --train the expert is added "
        "all the same."
    )
    assert catalogue.current_number() == 0
    assert not (cli.home / "runs").exists()


def test_an_expert_that_reads_needs_keys_that_its_texts_hold(cli: CommandLine, catalogue: Catalogue) -> None:
    texts = cli.home / "texts"
    texts.mkdir()
    (texts / "trees.md").write_text("# Oak\nThe oak is tall.\n", "utf-8")
    said = one_line(cli.run(*add(cli, "--knowledge", str(texts))))
    assert "and 10 of 20 are of use" in said
    assert "each row needs an answer, and a key: a short fact that one of its texts holds, word for word." in said
    assert catalogue.current_number() == 0


def test_a_base_that_is_not_served_here_is_refused(cli: CommandLine, catalogue: Catalogue) -> None:
    elsewhere = CommandLine(cli.home, {**cli.settings, "EXPERT_ROUTER_ENGINE__BASE_MODEL": "some/model"})
    assert one_line(elsewhere.run(*add(cli))).startswith("--train is for base models of models.lock")
    assert catalogue.current_number() == 0


def test_without_the_extra_it_says_what_to_install_and_changes_nothing(cli: CommandLine, catalogue: Catalogue) -> None:
    (cli.home / "without").mkdir()
    (cli.home / "without" / "torch.py").write_text("raise ImportError('no torch here')", "utf-8")
    path = f"{cli.home / 'without'}:{ROOT / 'src'}"
    done = CommandLine(cli.home, {**cli.settings, "PYTHONPATH": path}).run(*add(cli))
    assert one_line(done) == (
        "Training an expert needs more packages (no torch here): pip install 'expert-router[train]'"
    )
    assert catalogue.current_number() == 0


@pytest.mark.parametrize("words", [("remove", "cars"), ("add", "trees", "--url", "http://127.0.0.1:1")])
def test_it_is_of_add_alone_and_where_the_catalogue_is(cli: CommandLine, words: tuple[str, ...]) -> None:
    assert one_line(cli.run("expert", *words, "--train")).startswith("--train is for: expert-router expert add NAME")


def test_one_in_five_questions_is_validated_on_whatever_their_order() -> None:
    questions = [QuestionAnswer(question, answer, (key,)) for question, answer, key in ROWS]
    training, validation = _split(questions)
    assert (len(training), len(validation)) == (16, 4)
    assert {each.question for each in (*training, *validation)} == {question for question, *_ in ROWS}
    assert _split(questions[::-1]) == (training, validation)
    assert [len(part) for part in _split(questions[:2])] == [1, 1]


# The swap


@pytest.fixture
def live(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> LiveExperts:
    """Of a running system, in this process."""
    unread = {"EXPERT_ROUTER_HOME": str(cli.home), "EXPERT_ROUTER_KNOWLEDGE__PASSAGES": "0"}
    for name, value in {**cli.settings, **unread}.items():
        monkeypatch.setenv(name, value)
    parts = build_parts(load_settings("echo"))
    return LiveExperts(parts, assemble(parts, build_router(parts), EchoEngine(), library=None))


TREE_EXPERT = Proposal("trees", examples=tuple(TaughtExample(*row) for row in ROWS))


@pytest.fixture
def install(home: Path) -> Callable[[Path], None]:
    lora = write_lora(home / "adapter", home / "tiny.gguf").folder

    def install(folder: Path) -> None:
        install_adapter(folder, BASE, lora, {"canary": {"prompt": "Who?", "answer": "I"}})

    return install


def test_the_adapter_is_in_a_further_version_and_the_one_before_is_as_it_was(
    live: LiveExperts, install: Callable[[Path], None]
) -> None:
    added = live.add(TREE_EXPERT).version
    before = live._dispatcher.deployed  # type: ignore[union-attr]
    change = live.equip("trees", install, trained=added)
    after = live._dispatcher.deployed  # type: ignore[union-attr]
    assert (change.version.number, change.version.change) == (2, "train trees")
    (adapter,) = after.trained["trees"].adapters.values()
    assert adapter.path.is_relative_to(live.catalogue.folder / "versions" / "2")
    assert sha256_of(adapter.path / ADAPTER_WEIGHTS) == adapter.sha256
    assert before.trained["trees"].adapters == {}  # what runs goes on with
    assert not (added.added["trees"] / "adapters").exists()
    assert live.rollback().version == added
    assert live.experts()["trees"].adapters == {}


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_an_expert_that_was_changed_meanwhile_does_not_get_the_adapter(
    live: LiveExperts, install: Callable[[Path], None], change: str
) -> None:
    added = live.add(TREE_EXPERT).version
    if change == "removed":
        live.remove("trees")
    else:
        live.add(Proposal("trees", examples=TREE_EXPERT.examples[:12]), replacing=True)
    with pytest.raises(InvalidRequestError, match="'trees' was changed while its adapter was trained"):
        live.equip("trees", install, trained=added)
    assert live.catalogue.current_number() == 2


def test_another_expert_that_comes_meanwhile_is_kept(live: LiveExperts, install: Callable[[Path], None]) -> None:
    added = live.add(TREE_EXPERT).version
    live.add(Proposal("birds", examples=tuple(TaughtExample(f"Do {tree}s fly?") for tree in TREES)))
    version = live.equip("trees", install, trained=added).version
    assert list(version.added) == ["trees", "birds"]
    assert BASE in live.experts()["trees"].adapters


# Training


@pytest.mark.train
@pytest.mark.timeout(300)
def test_an_expert_is_trained_proven_and_swapped_in(cli: CommandLine, catalogue: Catalogue) -> None:
    thoroughly = ("--learning-rate", "1e-2", "--rank", "16", "--micro-batch-size", "16", "--passes", "60")
    done = cli.run(*add(cli, "--instructions", "Trees.", *thoroughly), within_s=280)
    assert done.status == 0, done.error
    said = [line for line in done.out.splitlines() if not line.startswith("{")]
    assert said[0].startswith("Version 1 counts now: add trees.")
    assert said[-1].startswith("Version 2 counts now: train trees.")
    adapter = catalogue.current().experts({})["trees"].adapters[BASE]
    about = read_artifact(adapter.path)
    assert about["canary"]["answer"]
    assert about["base_sha256"] == sha256_of(cli.home / "tiny.gguf")
    assert catalogue.read(1).experts({})["trees"].adapters == {}
    (prepared,) = (cli.home / "cache" / "prepared").glob(f"{BASE}-*-{adapter.sha256[:12]}-*/manifest.json")
    assert json.loads(prepared.read_text("utf-8"))["modules"] == 14  # seven of each block


@pytest.mark.train
def test_an_adapter_that_nothing_proves_is_refused_and_the_expert_answers_without(
    cli: CommandLine, catalogue: Catalogue
) -> None:
    done = cli.run(*add(cli, "--max-steps", "1", "--json"), within_s=110)
    assert done.status == 1
    answer = json.loads(done.out)
    (run,) = (cli.home / "runs").iterdir()
    refused = f"trees is added and answers without an adapter. The adapter of {run} is sure of no answer that its base"
    assert (answer["version"], answer["change"]) == (1, "add trees")
    assert answer["warnings"][-1].startswith(refused)
    assert done.error.splitlines()[-1].startswith(f"expert-router: {refused}")
    assert catalogue.current_number() == 1
    assert catalogue.current().experts({})["trees"].adapters == {}


@pytest.mark.train
def test_the_tutorials_command_trains_on_the_texts(cli: CommandLine, catalogue: Catalogue) -> None:
    """The gardening expert, as docs/add-a-domain.md has it, for one step of the random base."""
    (line,) = (
        line
        for line in (ROOT / "docs" / "add-a-domain.md").read_text("utf-8").splitlines()
        if line.startswith("expert-router ") and line.endswith("--train")
    )
    write_training_data(cli.home)
    words = [str(ROOT / word) if word.startswith("data/") else word for word in shlex.split(line)[1:]]
    briefly = CommandLine(cli.home, {**cli.settings, "EXPERT_ROUTER_KNOWLEDGE__PASSAGES": "1"})
    done = briefly.run(*words, "--max-steps", "1", "--passes", "1", "--batch-size", "4", within_s=110)
    assert done.status in {0, 1}, done.error
    (counted,) = (line for line in done.out.splitlines() if "answerable" in line)
    assert int(counted.split()[0]) > int(counted.split()[2]) > 40
    assert catalogue.current().experts({})["gardening"].knowledge is not None
