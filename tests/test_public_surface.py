"""What a user of the package sees: six names, typed, each imported when it is first used."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import expert_router

ROOT = Path(__file__).parents[1]
NAMES = {"Answer", "Decision", "ExpertRouter", "ExpertRouterError", "Message", "open"}


def test_the_package_has_these_names_and_no_other() -> None:
    assert set(expert_router.__all__) == set(dir(expert_router)) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_name_gives_what_it_says(name: str) -> None:
    value = getattr(expert_router, name)
    assert value.__name__ == name
    assert value.__module__.startswith("expert_router.")


def test_another_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="module 'expert_router' has no attribute 'opne'"):
        expert_router.opne  # noqa: B018


def test_importing_the_package_loads_none_of_its_modules() -> None:
    code = "import expert_router, sys; print(*(name for name in sys.modules if name.startswith('expert_router')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "expert_router\n"


def test_an_open_system_has_these_methods_and_no_other() -> None:
    public = {name for name in dir(expert_router.ExpertRouter) if not name.startswith("_")}
    assert public == {"experts", "route", "explain", "ask", "stream", "close"}
    for name in public:
        assert inspect.getdoc(getattr(expert_router.ExpertRouter, name))


def test_a_type_checker_sees_what_each_call_gives(tmp_path: Path) -> None:
    user = tmp_path / "user.py"
    user.write_text(
        "from typing import assert_type\n"
        "import expert_router\n"
        "from expert_router import Answer, Decision, ExpertRouter, ExpertRouterError, Message\n"
        "async def main() -> None:\n"
        "    with expert_router.open('echo') as system:\n"
        "        assert_type(system, ExpertRouter)\n"
        "        assert_type(system.experts, list[str])\n"
        "        assert_type(system.route('Why?', history=['What is REM sleep?']), Decision)\n"
        "        assert_type(system.explain('Why?', ['What is REM sleep?'], nearest=3).decision, Decision)\n"
        "        assert_type(system.ask('Why?', model='sleep'), Answer)\n"
        "        assert_type(system.ask([Message('user', 'Why?')]).text, str)\n"
        "        try:\n"
        "            async for event in system.stream('Why?'):\n"
        "                assert_type(event.text, str)\n"
        "        except ExpertRouterError as error:\n"
        "            assert_type(error.message, str)\n"
        "        system.ask(3)  # type: ignore[arg-type]\n",
        "utf-8",
    )
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--follow-imports", "silent", user],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout
    assert (ROOT / "src/expert_router/py.typed").is_file()
