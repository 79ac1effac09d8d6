from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from expert_router.telemetry.series import Counter, Family
from expert_router.telemetry.workers import Workers, merged

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

ASKED = Family("asked_total", "counter", "Questions.", ("expert",))


def told_by(workers: Workers, questions: int) -> str:
    counter = Counter(ASKED)
    counter.inc("sleep", by=questions)
    return ASKED.head() + "".join(counter.lines(workers.label))


def samples(text: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels["worker"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_whichever_is_asked_tells_of_all(tmp_path: Path) -> None:
    first, second = (Workers(tmp_path, number, 2) for number in range(2))
    await first.listen(lambda: told_by(first, 3))
    await second.listen(lambda: told_by(second, 5))
    everything = {
        ("asked_total", "0"): 3,
        ("asked_total", "1"): 5,
        ("expert_router_worker_up", "0"): 1,
        ("expert_router_worker_up", "1"): 1,
    }
    assert samples(await first.exposition(told_by(first, 3))) == everything
    assert samples(await second.exposition(told_by(second, 5))) == everything
    await first.close()
    await second.close()


async def test_one_that_does_not_tell_is_said_to_be_down(tmp_path: Path) -> None:
    first = Workers(tmp_path, 0, 3)
    with socket.socket(socket.AF_UNIX) as stuck:  # takes connections and never answers
        stuck.bind(str(tmp_path / "1.sock"))
        stuck.listen()
        told = samples(await first.exposition(told_by(first, 3)))
    assert told == {
        ("asked_total", "0"): 3,
        ("expert_router_worker_up", "0"): 1,
        ("expert_router_worker_up", "1"): 0,
        ("expert_router_worker_up", "2"): 0,
    }


async def test_one_that_replaces_another_takes_its_place(tmp_path: Path) -> None:
    first, died, replacement = (Workers(tmp_path, number, 2) for number in (0, 1, 1))
    await died.listen(lambda: told_by(died, 9))
    await replacement.listen(lambda: told_by(replacement, 1))
    assert samples(await first.exposition(""))[("asked_total", "1")] == 1
    await replacement.close()
    await died.close()


async def test_one_that_cannot_be_asked_still_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nowhere = Workers(tmp_path / ("x" * 120), 0, 2)
    await nowhere.listen(str)
    assert samples(await nowhere.exposition(told_by(nowhere, 3)))[("asked_total", "0")] == 3
    await nowhere.close()
    assert "the other workers' scrapes miss this one" in caplog.text


def test_the_series_of_a_family_stand_together() -> None:
    one = "# HELP a A.\n# TYPE a gauge\na 1\n# HELP b B.\n# TYPE b gauge\nb 1\n"
    other = '# HELP a A.\n# TYPE a gauge\na{x="# HELP"} 2\n'
    assert merged([one, other]) == (
        '# HELP a A.\n# TYPE a gauge\na 1\na{x="# HELP"} 2\n# HELP b B.\n# TYPE b gauge\nb 1\n'
    )
