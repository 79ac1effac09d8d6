"""docs/add-a-domain.md, followed line by line: the real router and catalogue, and no language model.

What it quotes must come out, but for times; a line ``…`` stands for any others. Training, its section 8, is in
``commands/test_add_and_train.py``.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from expert_router import commands
from support import ROOT, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TUTORIAL = (ROOT / "docs" / "add-a-domain.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTIONS = {
    int(number): [(language, body) for language, body in BLOCK.findall(text)]
    for number, text in re.findall(r"^## (\d)\. [^\n]*\n(.*?)(?=^## |\Z)", TUTORIAL, re.MULTILINE | re.DOTALL)
}
ADDRESS = "http://127.0.0.1:8000"
SERVE, FOLLOWED, WITH_MANY_QUESTIONS = 1, range(2, 8), 9
TIMES = re.compile(r"\d+\.\d(?= ms)|\d{4}-\d\d-\d\dT[\d:+]+|(?<=\"routed_s\":)[\d.]+|\d+\.\d(?= s\.)")
OTHER_LINES = "…"

pytestmark = pytest.mark.timeout(400)  # with an empty cache all shipped passages are read first: a minute on two cores


@dataclass
class Reader:
    """Somebody in a checkout of their own, in their second terminal; ``server`` runs in the first."""

    home: Path
    server: subprocess.Popen[str] | None = None
    url: str = ""

    def follow(self, section: int) -> list[tuple[str, str]]:
        """What each quoted block says and what came out of the block before it; without a quote, an empty one."""
        compared, out = [], ""
        for language, body in SECTIONS[section]:
            if language == "text":
                compared[-1] = (body, out)
            else:
                out = self.run(language, body)
                compared.append(("", out))
        return compared

    def run(self, language: str, body: str) -> str:
        out = io.StringIO()
        with chdir(self.home), redirect_stdout(out), redirect_stderr(out):
            if language == "python":
                exec(compile(body, "tutorial", "exec"), {})
            elif language == "toml":
                (self.home / "experts" / "gardening" / "expert.toml").write_text(body, "utf-8")
            else:
                for line in re.sub(r"\\\n\s*", "", body).splitlines():
                    out.write(self.type(line).strip() + "\n")
        return out.getvalue()

    def type(self, line: str) -> str:
        """Run a line of the shell; a verb in this process, which saves its start."""
        if line.startswith("curl ") or " --url " in line:
            line = line.replace(ADDRESS, self.address())
        if not line.startswith("expert-router "):
            return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=30).stdout
        assert commands.run(shlex.split(line)[1:]) == 0, line
        return ""

    def address(self) -> str:
        """Of the server, once it serves what was changed."""
        if not self.url:
            assert self.server is not None
            assert self.server.stdout is not None
            announced = (re.search(r"is at (\S+)", line) for line in self.server.stdout)
            self.url = next(found[1] for found in announced if found)
        current = (self.home / "catalogue" / "CURRENT").read_text().strip()
        eventually(lambda: str(self.experts()["version"]) == current, within_s=20)
        return self.url

    def experts(self) -> dict[str, Any]:
        answer: dict[str, Any] = httpx2.get(f"{self.url}/v1/experts", trust_env=False).json()
        return answer


@contextmanager
def reading(home: Path) -> Iterator[Reader]:
    shutil.copytree(ROOT / "experts", home / "experts", ignore=shutil.ignore_patterns("adapters"))
    for name in ("configs", "data", "artifacts"):
        shutil.copytree(ROOT / name, home / name)
    shutil.copy(ROOT / "models.lock", home)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EXPERT_ROUTER_")}
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - kept.keys():
            patch.delenv(name)
        patch.setenv("EXPERT_ROUTER_HOME", str(home))
        patch.setenv("EXPERT_ROUTER_PATHS__CATALOGUE", str(home / "catalogue"))
        patch.setenv("EXPERT_ROUTER_ENGINE__NAME", "echo")
        patch.setenv("no_proxy", "127.0.0.1")
        yield Reader(home)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    with reading(tmp_path_factory.mktemp("checkout")) as reader:
        ((_, line),) = SECTIONS[SERVE]
        *variables, program, verb = shlex.split(line)
        assert (program, verb) == ("expert-router", "serve")
        port = "EXPERT_ROUTER_SERVER__PORT=0"
        command = [sys.executable, "-c", "from expert_router.commands import main; main()", verb]
        with subprocess.Popen(
            ["env", *variables, port, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as reader.server:
            yield reader
            reader.server.terminate()


@pytest.fixture(scope="module")
def followed(reader: Reader) -> dict[int, list[tuple[str, str]]]:
    """What is quoted and what came, by section: followed in order, once."""
    return {section: reader.follow(section) for section in FOLLOWED}


def compare(quoted: str, out: str) -> None:
    """All that came is quoted, in its order, but for times and what a ``…`` stands for."""
    lines = [".*" if line == OTHER_LINES else re.escape(line) for line in _lines(quoted)]
    assert re.fullmatch("\n".join(lines), "\n".join(_lines(out)), re.DOTALL), f"{out}\nis not\n{quoted}"


def _lines(text: str) -> list[str]:
    """What is seen in the end: a progress bar is written over."""
    seen = (line.rpartition("\r")[2].rstrip() for line in text.split("\n"))
    return [TIMES.sub("*", line) for line in seen if line]


@pytest.mark.parametrize("section", FOLLOWED)
def test_what_the_tutorial_quotes_is_what_comes(section: int, followed: dict[int, list[tuple[str, str]]]) -> None:
    quotes = [(quoted, out) for quoted, out in followed[section] if quoted]
    assert quotes
    for quoted, out in quotes:
        compare(quoted, out)


def test_the_running_server_lets_the_new_expert_answer(followed: dict[int, list[tuple[str, str]]]) -> None:
    (_, out), *_ = followed[3]
    answer = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
    assert answer["expert_router"]["experts"] == ["gardening"]
    assert answer["choices"][0]["message"]["content"] == "[Gardening] You asked: When do I plant tulip bulbs?"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_questions_are_learnt_with_all_others(tmp_path: Path) -> None:
    with reading(tmp_path) as reader:
        reader.follow(2)
        ((quoted, out),) = [(quoted, out) for quoted, out in reader.follow(WITH_MANY_QUESTIONS) if quoted]
        compare(quoted, out)
        experts = reader.run("bash", "expert-router expert list")
        assert re.findall(r"^(\w+) +shipped", experts, re.MULTILINE) == ["cars", "gardening", "sleep"]


def test_the_table_of_additions_is_the_benchmarks() -> None:
    (copied,) = re.findall(r"<!-- additions -->\n(.*?)<!-- /additions -->", TUTORIAL, re.DOTALL)
    assert copied.startswith("| examples | reach it |")
    assert copied in (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
