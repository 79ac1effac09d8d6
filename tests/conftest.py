"""Its being here puts this folder on the import path: any test may say ``from support import ...``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import support

if TYPE_CHECKING:
    from collections.abc import Iterator


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
