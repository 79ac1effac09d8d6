"""Its being here puts this folder on the import path: any test may say ``from support import ...``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import support

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def _every_server_stops() -> Iterator[None]:
    yield
    for server in support.started:
        server.stop()
