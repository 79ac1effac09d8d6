"""Its being here puts this folder on the import path: any test may say ``from support import ...``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import support
from expert_router.keys import changing, new_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def _catalogue_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The experts that were added in this checkout are not tested, and none is added to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPERT_ROUTER_PATHS__CATALOGUE", str(tmp_path_factory.mktemp("catalogue")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _every_server_stops() -> Iterator[None]:
    yield
    for server in support.started:
        server.stop()


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.jsonl"


@pytest.fixture(scope="module")
def secret(keys_file: Path) -> str:
    """Of the one key in it."""
    key, secret = new_key("laura")
    with changing(keys_file) as keys:
        keys[key.id] = key
    return secret
