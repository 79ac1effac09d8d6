from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cli import CommandLine

from support import make_home

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="session")
def cli(home: Path) -> CommandLine:
    return CommandLine(home)
