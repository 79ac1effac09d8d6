"""Documentation that fails the build: what README.md and docs/ promise is run, or looked up where it is defined."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
import yaml  # type: ignore[import-untyped]
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from expert_router import commands, errors, settings
from expert_router.api.errors import error_object
from expert_router.decision_log import DecisionStore, read_decisions
from expert_router.engines.echo import EchoEngine
from expert_router.routing.explanation import MOST_WORDS
from expert_router.serving.decision_writer import DecisionWriter
from expert_router.settings import Settings, load_settings
from expert_router.types import Feedback
from expert_router.weights import load_lock
from support import events, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2

    from support import Server

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
DOCS = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
SETTINGS_DOC, ERRORS_DOC, WEIGHTS_DOC = (DOCS[f"docs/{name}.md"] for name in ("settings", "errors", "weights"))

ADDRESS = "http://127.0.0.1:8000"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")

needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


def blocks(language: str) -> dict[str, str]:
    """The fenced blocks of a language, by file and number."""
    return {
        f"{name}-{number}": body
        for name, text in DOCS.items()
        for number, (marked, body) in enumerate(FENCE.findall(text), start=1)
        if marked == language
    }


def spans(text: str) -> list[str]:
    """What stands between backticks, fenced blocks left out."""
    return SPAN.findall(FENCE.sub("", text))


def table(text: str) -> list[list[str]]:
    """The cells of every row of every table, headings included."""
    rows = [line[1:-1].split("|") for line in text.splitlines() if re.match(r"\|.*[^-| ].*\|$", line)]
    return [[cell.strip() for cell in row] for row in rows]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the checkout, as a reader of the documentation would."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "no_proxy": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(EchoEngine()) as running:
        yield running


# Blocks of code


ELSEWHERE = "docs/add-a-domain.md"
"""Its blocks belong together: test_add_a_domain.py follows them in order."""
PYTHON = {name: body for name, body in blocks("python").items() if not name.startswith(ELSEWHERE)}


@pytest.mark.parametrize("block", PYTHON.values(), ids=PYTHON)
def test_every_python_block_runs_and_prints_an_answer(block: str, server: Server) -> None:
    done = python("-c", block.replace(ADDRESS, server.url))
    assert (done.returncode, done.stderr) == (0, "")
    assert "You asked: " in done.stdout


def test_the_readme_shows_the_openai_client_and_the_package_itself() -> None:
    shown = [body for name, body in blocks("python").items() if name.startswith("README")]
    assert [ADDRESS in body for body in shown] == [True, False]
    assert 'expert_router.open("echo")' in shown[1]


def test_the_openai_block_prints_who_answered_and_the_answer(server: Server) -> None:
    (block,) = (body for body in PYTHON.values() if ADDRESS in body)
    printed = python("-c", block.replace(ADDRESS, server.url)).stdout
    assert printed == "['cars'] [Car history] You asked: Who built the first car, and when?\n"


def test_the_package_block_prints_the_decision_then_the_answer() -> None:
    (block,) = (body for body in PYTHON.values() if "expert_router.open" in body)
    decision, answer = python("-c", block).stdout.splitlines()
    assert re.match(r"(single|several|clarify|general) \(.*\) .*\.$", decision)
    assert answer.endswith("You asked: Who founded Ferrari, and in which year?")


def test_the_curl_example_is_a_stream_with_an_answer(server: Server) -> None:
    first, *_, last = events(run_curl(server, "/v1/chat/completions", {}).text)
    assert first["expert_router"]["experts"] == ["cars"]
    assert last == "[DONE]"


def test_the_curl_example_of_an_explanation_gives_every_documented_field(server: Server) -> None:
    explanation = run_curl(server, "/v1/explain", {}).json()
    _, *rows = table(DOCS["docs/explain.md"])
    assert {field.strip("`") for field, _ in rows} == explanation.keys() - {"query"}
    assert "`turns_back`" in DOCS["docs/explain.md"]
    assert f"{MOST_WORDS} words are tried" in DOCS["docs/explain.md"]


def test_the_curl_example_of_feedback_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "decisions.sqlite"
    with serve(EchoEngine(), log=DecisionWriter(DecisionStore(log, retention_days=30, max_rows=9))) as logging:
        decision = logging.post().json()["expert_router"]["decision"]["id"]
        assert run_curl(logging, "/v1/feedback", {"decision": decision}).status_code == 204
    (logged,) = read_decisions(log)
    assert logged.feedback == Feedback("down", ("cars",))


def test_the_curl_commands_of_the_runbook_work_as_they_stand(server: Server, tmp_path: Path) -> None:
    blocks_of_it = [body for name, body in blocks("bash").items() if name.startswith("docs/operations.md")]
    lines = [line for body in blocks_of_it for line in body.splitlines() if line.startswith("curl ")]
    assert len(lines) > 3
    for line in lines:
        asked = ["bash", "-o", "pipefail", "-c", line.replace("curl -s", "curl -sf").replace(ADDRESS, server.url)]
        subprocess.run(asked, cwd=tmp_path, check=True, capture_output=True, timeout=30)


def test_the_runbook_explains_what_ready_says(server: Server) -> None:
    ready = server.http.get("/health/ready").json()
    _, *rows = table(DOCS["docs/operations.md"].partition("## Start")[0])
    explained = {field.strip("`").split(".")[0] for field, _ in rows}
    assert explained >= ready.keys() - {"status", "reason", "experts", "router", "similar_answers"}


def run_curl(server: Server, path: str, changes: dict[str, str]) -> httpx2.Response:
    """Send what the one example for a path sends, with ``changes``."""
    examples = [shlex.split(line) for line in _shell_lines() if line.startswith("curl ")]
    (words,) = (words for words in examples if words[1] == f"{ADDRESS}{path}")
    return server.http.post(path, json={**json.loads(words[words.index("-d") + 1]), **changes})


@pytest.mark.parametrize("block", blocks("toml").values(), ids=blocks("toml"))
def test_every_toml_block_is_toml(block: str) -> None:
    assert tomllib.loads(block)


# Settings


def setting_rows() -> list[tuple[str, str, str, str]]:
    """Section (empty outside of one), key, default and text of each setting."""
    _, *rows = table(SETTINGS_DOC)
    return [
        (section, key, default.strip("`"), text) for section, keys, default, text in rows for key in SPAN.findall(keys)
    ]


def sections() -> dict[str, type[settings.Section]]:
    found = {name: field.annotation for name, field in Settings.model_fields.items()}
    return {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, settings.Section)}


def _shown(default: object) -> str:
    text = "off" if default is None else str(default)
    return text.replace(str(Path.home()), "~")


def test_every_setting_is_documented_with_its_true_default_and_no_other_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    true = {
        (section, key): _shown(field.get_default(call_default_factory=True))
        for section, kind in sections().items()
        for key, field in kind.model_fields.items()
    }
    assert {(section, key): default for section, key, default, _ in setting_rows() if section} == true


def test_every_setting_outside_the_sections_is_documented() -> None:
    outside = {key: default for section, key, default, _ in setting_rows() if not section}
    assert set(outside) == set(Settings.model_fields) - set(sections())
    assert outside["log_level"] == Settings.model_fields["log_level"].default


def test_every_setting_is_described_as_the_code_describes_it() -> None:
    described = {}
    for section, kind in sections().items():
        (body,) = ast.parse(inspect.getsource(kind)).body
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, [*body.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                says = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and str(after.value.value)
                described[section, field.target.id] = " ".join((says or "").split())
    assert {(section, key): text for section, key, _, text in setting_rows() if section} == described


def test_every_choice_of_a_setting_is_named() -> None:
    texts = {(section, key): default + text for section, key, default, text in setting_rows()}
    fields = [("", Settings.model_fields), *((section, kind.model_fields) for section, kind in sections().items())]
    for section, of_section in fields:
        for key, field in of_section.items():
            for choice in get_args(field.annotation):
                if isinstance(choice, str):
                    assert choice in texts[section, key], f"{section} {key} has the choice {choice}"


def test_every_variable_that_the_documents_name_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = "".join([*DOCS.values(), (ROOT / ".env.example").read_text("utf-8")])
    nested = set(re.findall(r"EXPERT_ROUTER_([A-Z]+(?:_[A-Z]+)*)__([A-Z_]+)", texts))
    assert nested
    for section, key in nested:
        assert key.lower() in sections()[section.lower()].model_fields
    plain = {name.rstrip("_") for name in re.findall(r"EXPERT_ROUTER_([A-Z_]*[A-Z])(?!\w)", texts) if "__" not in name}
    assert plain <= {name.upper() for name in Settings.model_fields} | Settings.KNOWN_ELSEWHERE
    for name, value in re.findall(r"^#? ?(EXPERT_ROUTER_\w+)=(.*)$", texts, re.MULTILINE):
        monkeypatch.setenv(name, value)
    assert load_settings().profile == "tiny"  # the example of .env.example


def test_the_profiles_that_are_named_are_those_that_exist() -> None:
    (line,) = (line for line in SETTINGS_DOC.splitlines() if line.startswith("Profiles:"))
    assert set(spans(line)) == {path.stem for path in (ROOT / "configs").glob("*.toml")}


# Errors


def all_errors(root: type[errors.ExpertRouterError] = errors.ExpertRouterError) -> Iterator[type[Any]]:
    for error in root.__subclasses__():
        if error.__module__ == errors.__name__:
            yield error
            yield from all_errors(error)


def test_every_error_on_the_wire_is_documented_with_its_status_and_no_other_is() -> None:
    documented = {(int(row[0]), row[1].strip("`")) for row in table(ERRORS_DOC) if row[0].isdigit()}
    internal = (500, error_object(ValueError("never shown"))["error"]["code"])
    assert documented == {(error.status, error.code) for error in all_errors() if error.code} | {internal}


def test_every_error_without_a_code_is_documented_as_one_at_start() -> None:
    (at_start,) = (line for line in ERRORS_DOC.splitlines() if line.startswith("At start"))
    assert set(spans(at_start)) == {error.__name__ for error in all_errors() if not error.code}


def test_the_tree_in_the_modules_docstring_has_every_error_with_its_status() -> None:
    drawn = dict(re.findall(r"(\w+Error) +(\d+|-)", errors.__doc__ or ""))
    true = {error.__name__: str(error.status) if error.code else "-" for error in all_errors()}
    assert drawn == {"ExpertRouterError": "500", **true}


# Commands


def _shell_lines() -> list[str]:
    """Each command of the documents' shell blocks; lines that end with a backslash are joined."""
    return [
        line
        for block in [*blocks("bash").values(), *blocks("sh").values()]
        for line in re.sub(r"\\\n\s*", "", block).splitlines()
        if line.strip() and not line.startswith("#")
    ]


def _recipe_lines() -> list[str]:
    """What the Makefile's targets would run, with its variables as they are for either base."""
    targets = re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)
    return [
        line
        for profile in ("", "tiny")
        for line in subprocess.check_output(
            ["make", "--dry-run", *targets, f"PROFILE={profile}"], cwd=ROOT, text=True
        ).splitlines()
    ]


def documented_commands() -> list[str]:
    """What follows ``expert-router`` wherever it is written, ``bench engine`` alone included."""
    written = [*_shell_lines(), *(span for text in DOCS.values() for span in spans(text))]
    written += [line.removeprefix(".venv/bin/") for line in _recipe_lines()]
    after = [line.removeprefix("expert-router ") for line in written if line.startswith("expert-router ")]
    alone = [span for span in written if re.match(rf"({'|'.join(commands.VERBS)}) ", span)]
    return sorted({*after, *alone})


def _verb_parser(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(verb, exit_on_error=False)
    parser.add_argument("--config", "--profile")
    importlib.import_module(f"expert_router.commands.{verb.replace('-', '_')}").add_arguments(parser)
    return parser


@pytest.mark.parametrize("command", documented_commands())
def test_every_documented_command_is_understood(command: str) -> None:
    verb, *options = shlex.split(re.sub(r"^--config \S+ ", "", command), comments=True)
    assert verb in commands.VERBS
    if "--help" not in options:
        _verb_parser(verb).parse_args(options)


def test_every_verb_that_is_documented_is_listed_by_help() -> None:
    script = Path(sys.executable).with_name("expert-router")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^    ([a-z-]+)  ", done.stdout, re.MULTILINE))
    assert listed == set(commands.VERBS)
    used = {re.sub(r"^--config \S+ ", "", command).split()[0] for command in documented_commands()}
    assert used <= listed


@pytest.mark.parametrize("verb", commands.VERBS)
def test_every_verb_of_help_has_a_help_of_its_own(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        commands.run([verb, "--help"])
    assert left.value.code == 0
    assert f"usage: expert-router {verb}" in capsys.readouterr().out


# make


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


@needs_make
def test_make_help_lists_every_target_with_its_text() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(["make", "help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    listed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert set(listed) == make_targets()


def test_every_make_target_in_the_documents_exists() -> None:
    code = [*_shell_lines(), *(span for text in DOCS.values() for span in spans(text))]
    named = {line.split()[1] for line in code if line.startswith("make ")}
    assert {"run", "ask", "demo", "test", "check"} <= named
    assert named <= make_targets()


def test_every_variable_given_to_make_is_one_that_it_reads() -> None:
    code = [*_shell_lines(), *(span for text in DOCS.values() for span in spans(text))]
    given = {name for line in code if line.startswith("make ") for name in re.findall(r"\b([A-Z]+)=", line)}
    assert given
    assert given <= set(re.findall(r"^([A-Z]+) \?=", MAKEFILE, re.MULTILINE))


def test_every_phony_target_has_a_rule() -> None:
    """make takes a phony name without a rule for done, and says nothing."""
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert set(phony.split()) == make_targets()


# Links, files and names


@pytest.mark.parametrize("document", DOCS)
def test_relative_links_and_images_exist(document: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", DOCS[document]))
    relative = [link.split("#")[0] for link in links if not re.match(r"\w+://|#|mailto:", link)]
    missing = [link for link in relative if not (ROOT / document).parent.joinpath(link).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCS)
def test_files_that_are_named_exist(document: str) -> None:
    """A path counts from the root, the package or the document's folder; a bare name may be anywhere in the package."""
    package = ROOT / "src/expert_router"
    named = [span for span in spans(DOCS[document]) if re.fullmatch(r"[\w./-]+\.(py|toml|md|lock|yml|txt)", span)]
    missing = [
        name
        for name in named
        if not any((base / name).exists() for base in (ROOT, package, (ROOT / document).parent))
        and ("/" in name or not any(package.rglob(name)))
    ]
    assert missing == []


@pytest.mark.parametrize("document", DOCS)
def test_classes_that_are_named_exist(document: str) -> None:
    source = "".join(path.read_text("utf-8") for path in (ROOT / "src/expert_router").rglob("*.py"))
    named = {match[1] for span in spans(DOCS[document]) if (match := re.match(r"((?:[A-Z][a-z]+){2,})\b", span))}
    missing = [name for name in sorted(named) if not re.search(rf"^class {name}\b", source, re.MULTILINE)]
    assert missing == []


def test_the_folder_structure_is_the_one_on_disk() -> None:
    (structure,) = re.findall(r"## Folder structure\n\n```\n(.*?)```", README, re.DOTALL)
    expected = []
    for line in structure.splitlines():
        *paths, last = re.split(r"\s{2,}", line)
        paths += [] if " " in last else [last]
        expected += [path for path in paths if "<" not in path]
        suffix = {"scripts/": ".py", "notebooks/": ".ipynb", "configs/": ".toml"}.get(paths[0])
        expected += [f"{paths[0]}{name}{suffix}" for name in last.split(", ") if suffix]
    assert len(expected) > 20
    assert [path for path in expected if not (ROOT / path).exists()] == []


def test_the_weights_are_documented_as_they_are_pinned() -> None:
    rows = [row for row in table(WEIGHTS_DOC) if row[0].startswith("`")]
    documented = {SPAN.findall(row[0])[0]: (row[2], row[3]) for row in rows}
    pinned = {
        name: (f"{model.size / 1e6:.0f} MB", "/".join(sorted({file.licence for file in model.files})))
        for name, model in load_lock(ROOT / "models.lock").items()
        if model.pruned is None  # made from one of the others
    }
    assert documented == pinned


# Entry points


@pytest.mark.parametrize(
    ("entry", "verb"),
    [
        (["main.py"], "serve"),
        (["gradio_app.py"], "chat-page"),
        (["-m", "scripts.query_router"], "route"),
        (["-m", "scripts.data_preparation"], "prepare"),
        (["-m", "scripts.inference"], "ask"),
        (["-m", "scripts.evaluate"], "evaluate"),
        (["-m", "scripts.fine_tune_model"], "train"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
def test_each_entry_point_of_the_specification_is_its_verb(entry: list[str], verb: str) -> None:
    done = python(*entry, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: expert-router {verb}" in done.stdout


def test_query_router_routes() -> None:
    done = python("-m", "scripts.query_router", "--json", "What is REM sleep?", EXPERT_ROUTER_CONFIG="echo")
    routed = json.loads(done.stdout)
    assert routed["query"] == "What is REM sleep?"
    assert set(routed["decision"]["scores"]) == {"cars", "sleep", "none"}


def test_inference_answers() -> None:
    done = python("-m", "scripts.inference", "--model", "sleep", "What is REM sleep?", EXPERT_ROUTER_CONFIG="echo")
    assert (done.returncode, done.stdout) == (0, "[Sleep science] You asked: What is REM sleep?\n")
    assert done.stderr.startswith("[sleep] ")


def test_data_preparation_takes_the_projects_own_data_whole() -> None:
    done = python("-m", "scripts.data_preparation", "--dry-run")
    heading, *rows = [line.split() for line in done.stdout.splitlines() if not line.startswith("note:")]
    quarantined = {row[0]: row[heading.index("quarantined")] for row in rows[:-1]}
    assert quarantined.pop("all") == "0"
    assert {"data/raw/sleep_science_qa.csv", "data/raw/car_history_qa.csv"} <= set(quarantined)


# Dependencies


def requirements(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def installed_on_linux(name: str, python_version: str = "3.12") -> dict[str, str]:
    """The packages and versions that a requirements file installs on Linux, x86_64."""
    environment = {key: str(value) for key, value in default_environment().items()} | {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "python_version": python_version,
        "python_full_version": f"{python_version}.1",
    }
    chosen = [each for each in requirements(name) if each.marker is None or each.marker.evaluate(environment)]
    versions: dict[str, str] = {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in chosen}
    assert len(versions) == len(chosen), "a package is pinned twice"
    return versions


@pytest.mark.parametrize("python_version", ["3.11", "3.12", "3.13", "3.14"])
def test_serving_installs_at_most_40_packages_and_nothing_heavy(python_version: str) -> None:
    packages = installed_on_linux("requirements.txt", python_version)
    assert len(packages) <= 40
    assert packages.keys().isdisjoint({"torch", "transformers", "gradio", "pandas"})


def test_the_number_of_packages_is_the_documented_one() -> None:
    (said,) = re.findall(r"installs (\d+) packages on Linux \(limit 40\)", DOCS["docs/decisions/0001-dependencies.md"])
    assert len(installed_on_linux("requirements.txt")) == int(said)


@pytest.mark.parametrize("name", [path.name for path in sorted(ROOT.glob("requirements*.txt"))])
def test_every_requirement_is_one_version(name: str) -> None:
    assert requirements(name)
    for each in requirements(name):
        assert [specifier.operator for specifier in each.specifier] == ["=="], str(each)


@pytest.mark.parametrize(
    ("name", "extras", "groups"),
    [
        ("requirements.txt", [], []),
        ("requirements-ui.txt", ["ui"], []),
        ("requirements-dev.txt", ["ui", "parquet", "pdf"], ["dev"]),
    ],
)
def test_the_pinned_versions_are_what_pyproject_asks_for(name: str, extras: list[str], groups: list[str]) -> None:
    project = PYPROJECT["project"]
    asked = list(project["dependencies"])
    asked += [each for extra in extras for each in project["optional-dependencies"][extra]]
    asked += [each for group in groups for each in PYPROJECT["dependency-groups"][group]]
    pinned = installed_on_linux(name)
    for each in map(Requirement, asked):
        assert pinned[canonicalize_name(each.name)] in each.specifier, str(each)


def test_the_zero_shot_requirements_are_the_extra() -> None:
    pinned = installed_on_linux("requirements-zero-shot.txt")
    asked = [Requirement(each) for each in PYPROJECT["project"]["optional-dependencies"]["zero-shot"]]
    assert set(pinned) == {each.name for each in asked}
    assert all(pinned[each.name] in each.specifier for each in asked)


def test_the_train_requirements_are_the_extra_and_agree_with_what_is_served_and_tested() -> None:
    pinned = installed_on_linux("requirements-train.txt")
    for each in map(Requirement, PYPROJECT["project"]["optional-dependencies"]["train"]):
        assert pinned[each.name] in each.specifier, str(each)
    for other in ("requirements.txt", "requirements-dev.txt", "requirements-zero-shot.txt"):
        shared = installed_on_linux(other)
        assert {name: shared[name] for name in pinned.keys() & shared.keys()} == {
            name: pinned[name] for name in pinned.keys() & shared.keys()
        }


def test_a_larger_set_of_requirements_agrees_with_the_smaller_one() -> None:
    serving, page, development = (installed_on_linux(f"requirements{name}.txt").items() for name in ("", "-ui", "-dev"))
    assert serving <= page <= development


def test_the_conda_environment_installs_the_page_and_the_package() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    assert environment["name"] == "expert-router"
    *plain, pip = environment["dependencies"]
    assert set(pip["pip"]) == {"-r requirements-ui.txt", "-e ."}
    assert "pip" in plain
    (version,) = (each.removeprefix("python=") for each in plain if each.startswith("python="))
    assert Requirement(f"python{PYPROJECT['project']['requires-python']}").specifier.contains(version)
