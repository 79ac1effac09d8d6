"""Experts by the command line: here, on a running server, and beside one."""

from __future__ import annotations

import json
import socket
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from cli import Finished, one_line
from test_serve import serving

from expert_router import commands
from support import chat_body, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cli import CommandLine

KEY = "a-key-of-sixteen-characters"
QUESTION = "When do I prune roses?"
FOLLOWS = "Servers of this catalogue follow within a second."


@pytest.fixture
def here(cli: CommandLine, tmp_path: Path) -> CommandLine:
    """With a catalogue of its own."""
    return replace(cli, settings={"EXPERT_ROUTER_PATHS__CATALOGUE": str(tmp_path / "catalogue")})


@dataclass(frozen=True)
class Inside:
    """The command in this process: starting one for each mistake would take most of the time."""

    catalogue: Path
    output: pytest.CaptureFixture[str]

    def run(self, *arguments: str) -> Finished:
        status = commands.run(["--config", "echo", *arguments])
        return Finished(status, *self.output.readouterr())

    def refused(self, *arguments: str) -> str:
        return one_line(self.run("expert", *arguments))


@pytest.fixture
def inside(here: CommandLine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Inside:
    for name, value in here.environment().items():
        if name.startswith("EXPERT_ROUTER_"):
            monkeypatch.setenv(name, value)
    return Inside(Path(here.settings["EXPERT_ROUTER_PATHS__CATALOGUE"]), capsys)


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "examples.csv"
    path.write_text(f"question,answer\n{QUESTION},In winter.\nWhy do my roses wilt?,\nWhich roses climb?,\n", "utf-8")
    return path


def said(finished: Finished) -> str:
    assert (finished.status, finished.error) == (0, "")
    return finished.out


def printed(finished: Finished) -> Any:
    return json.loads(said(finished))


def names(here: CommandLine | Inside) -> list[str]:
    return [expert["name"] for expert in printed(here.run("expert", "list", "--json"))]


def test_list_and_show_say_who_can_answer(inside: Inside) -> None:
    listed = said(inside.run("expert", "list")).splitlines()
    assert [line.split()[0] for line in listed] == ["cars", "sleep", "Version"]
    assert "Sleep science: " in listed[1]
    assert listed[-1] == "Version 0 (as shipped)."
    shown = said(inside.run("expert", "show", "sleep"))
    assert shown.splitlines()[:2] == ["name          sleep", "title         Sleep science"]
    one = printed(inside.run("expert", "show", "sleep", "--json"))
    assert one["name"] == "sleep"
    listed = [line for line in shown.splitlines() if line.startswith(("examples", " " * 14))]
    assert [line[14:] for line in listed][-len(one["examples"]) :] == one["examples"]
    assert names(inside) == ["cars", "sleep"]


def test_an_expert_is_added_routed_to_removed_and_brought_back(
    here: CommandLine, examples: Path, tmp_path: Path
) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "roses.md").write_text("# Roses\n\nPrune them in winter.", "utf-8")
    about = ("--title", 'The "rose" garden', "--description", "Roses.", "--instructions", "Be brief.")
    added = said(
        here.run("expert", "add", "gardening", "--examples", str(examples), "--knowledge", str(pages), *about)
    ).splitlines()
    assert added[0] == f"Version 1 counts now: add gardening. {FOLLOWS}"
    assert added[1].startswith("Warning: Taught with 3 examples")
    shown = printed(here.run("expert", "show", "gardening", "--json"))
    assert (shown["title"], shown["description"]) == ('The "rose" garden', "Roses.")
    routed = printed(here.run("route", "--json", QUESTION))
    assert routed["decision"]["experts"] == ["gardening"]
    folder = tmp_path / "catalogue/versions/1/experts/gardening"
    assert (folder / "knowledge/roses.md").read_text("utf-8") == "# Roses\n\nPrune them in winter."

    removed = printed(here.run("expert", "remove", "gardening", "--json"))
    assert removed == {"version": 2, "change": "remove gardening", "warnings": []}
    assert printed(here.run("route", "--json", QUESTION))["decision"]["experts"] == []

    assert said(here.run("expert", "rollback")).startswith("Version 1 counts now: add gardening.")
    assert names(here) == ["cars", "sleep", "gardening"]
    versions = said(here.run("expert", "versions")).splitlines()
    assert [(line[0], line.split()[-1]) for line in versions] == [
        (" ", "shipped"),
        ("*", "gardening"),
        (" ", "gardening"),
    ]
    listed = printed(here.run("expert", "versions", "--json"))
    assert [(each["version"], each["parent"], each["change"]) for each in listed] == [
        (0, None, "as shipped"),
        (1, 0, "add gardening"),
        (2, 1, "remove gardening"),
    ]
    assert said(here.run("expert", "rollback", "--to", "0")) == f"Version 0 counts now: as shipped. {FOLLOWS}\n"


def test_an_expert_is_replaced_when_that_is_asked_for(inside: Inside) -> None:
    said(inside.run("expert", "add", "gardening", "--description", "Roses."))
    again = ("expert", "add", "gardening", "--description", "Tulips.")
    assert one_line(inside.run(*again)) == (
        "There is an expert 'gardening' already. Remove it first, or replace it (`--replace`, or `replace` over HTTP)."
    )
    assert printed(inside.run(*again, "--replace", "--json"))["version"] == 2


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("add",), "Which expert? Say: expert-router expert add NAME"),
        (("show",), "Which expert? Say: expert-router expert show NAME"),
        (("add", "Big Garden", "--description", "d"), "The name 'Big Garden' must be lower-case letters"),
        (("add", "gardening"), "Give examples, questions that the expert should answer, or at least a description."),
        (("add", "gardening", "--examples", "gone.csv"), "gone.csv cannot be read: No such file or directory"),
        (("add", "gardening", "--knowledge", "gone"), "There is no folder of knowledge at gone."),
        (("add", "gardening", "--description", "caf\udce9"), "Not UTF-8 text: "),
        (("remove", "nobody"), "There is no expert 'nobody'. Known: cars, sleep."),
        (("show", "nobody"), "There is no expert 'nobody'. Known: cars, sleep."),
        (("rollback",), "There is no version before the first: nothing was changed yet."),
        (("rollback", "--to", "7"), "There is no version 7. Known: 0."),
    ],
)
def test_what_cannot_be_is_said_in_one_line(inside: Inside, arguments: tuple[str, ...], why: str) -> None:
    assert inside.refused(*arguments).startswith(why)
    assert not (inside.catalogue / "CURRENT").exists()


@pytest.mark.parametrize("broken", ["CURRENT", "versions"])
def test_a_catalogue_that_is_broken_is_said_in_one_line(inside: Inside, broken: str) -> None:
    folder = inside.catalogue
    folder.mkdir()
    (folder / broken).write_text("nonsense", "utf-8")
    said = inside.refused("add", "gardening", "--description", "Roses.")
    assert str(folder) in said
    assert ("Write into" in said) == (broken == "CURRENT")
    assert ("set paths.catalogue" in said) == (broken == "versions")


# A server


def listed(url: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx2.get(f"{url}/v1/experts", timeout=10, trust_env=False).json()
    return answer


def test_a_server_that_runs_follows_what_another_process_changes(here: CommandLine, examples: Path) -> None:
    with serving(here, "--no-page") as server:
        said(here.run("expert", "add", "gardening", "--examples", str(examples)))
        eventually(lambda: listed(server.url)["version"] == 1, within_s=2)
        body = chat_body(QUESTION, model="auto")
        asked = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=10, trust_env=False)
        assert asked.json()["choices"][0]["message"]["content"] == f"[Gardening] You asked: {QUESTION}"
        said(here.run("expert", "rollback"))
        eventually(lambda: listed(server.url)["version"] == 0, within_s=2)
        assert server.end()[0] == 0


def test_a_server_elsewhere_is_changed_by_its_address(here: CommandLine, examples: Path, tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "roses.txt").write_text("Prune them in winter.", "utf-8")
    with_key = replace(here, settings={**here.settings, "EXPERT_ROUTER_SERVER__ADMIN_KEY": KEY})
    with serving(with_key, "--no-page") as server:
        there = ("--url", server.url)
        added = said(
            with_key.run(
                "expert",
                "add",
                "gardening",
                "--examples",
                str(examples),
                "--knowledge",
                str(pages),
                "--title",
                "G",
                *there,
            )
        )
        assert added.startswith("Version 1 counts now: add gardening.")
        assert "Warning: Taught with 3 examples" in added
        assert [each["name"] for each in listed(server.url)["experts"]] == ["cars", "sleep", "gardening"]
        written = tmp_path / "catalogue/versions/1/experts/gardening/knowledge/knowledge.md"
        assert written.read_text("utf-8") == "## roses\n\nPrune them in winter.\n"
        keyless = replace(here, settings={})
        assert said(keyless.run("expert", "list", *there)).splitlines()[-1] == "Version 1."
        assert json.loads(said(keyless.run("expert", "show", "gardening", *there)))["title"] == "G"
        refused = keyless.run("expert", "remove", "sleep", *there)
        assert one_line(refused) == f"{server.url}: Send an admin's key: Authorization: Bearer <key>."
        removed = printed(keyless.run("expert", "remove", "sleep", "--admin-key", KEY, "--json", *there))
        assert (removed["version"], removed["hidden"]) == (2, ["sleep"])
        unknown = with_key.run("expert", "remove", "sleep", *there)
        assert one_line(unknown) == f"{server.url}: There is no expert 'sleep'. Known: cars, gardening."
        assert said(with_key.run("expert", "rollback", "--to", "0", *there)).startswith("Version 0 counts now")
        leave_out = "Versions are read from the catalogue's folder: leave --url out."
        assert one_line(with_key.run("expert", "versions", *there)) == leave_out


def test_an_address_where_nobody_answers_is_said_in_one_line(inside: Inside) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    for url in (f"http://127.0.0.1:{free}", "nonsense"):
        assert inside.refused("list", "--url", url).startswith(f"{url} cannot be asked: ")


@contextmanager
def somebody_elses_server() -> Iterator[str]:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b'{"detail": "Not Found"}')

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_another_server_than_ours_is_said_in_one_line(inside: Inside) -> None:
    with somebody_elses_server() as url:
        said = inside.refused("list", "--url", url)
    assert said == f"{url} answers 404, and not as expert-router does."
