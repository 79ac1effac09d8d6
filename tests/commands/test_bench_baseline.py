from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cli import one_line

if TYPE_CHECKING:
    from cli import CommandLine


@pytest.mark.parametrize(
    ("config", "arguments", "said"),
    [
        ("echo", (), "bench baseline compares with the embedded engine"),
        ("tiny", ("--clients", "many"), "--clients takes numbers joined by commas, not 'many'."),
        ("tiny", ("--answers", "0"), "from 1 on"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    cli: CommandLine, config: str, arguments: tuple[str, ...], said: str
) -> None:
    assert said in one_line(cli.run("bench", "baseline", *arguments, config=config))
