from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from random_home import make_random_home

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_home(tmp_path_factory.mktemp("checkout"))
