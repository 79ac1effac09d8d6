"""vLLM's supervisor and the engine above it, with a stand-in that has vLLM's endpoints and no model."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.engines.openai_http import served_model_names
from expert_router.engines.remote.supervisor import ATTEMPTS, ChildProgram, Supervisor
from expert_router.engines.vllm import VLLMEngine, VLLMOptions
from expert_router.errors import ConfigError, NotReadyError, UpstreamsDownError
from expert_router.types import GENERAL, Adapter, Expert, GenerationParams, Message
from processes import members_of
from support import eventually, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

STAND_IN = [sys.executable, "-m", "expert_router.evaluation.fake_vllm"]
BASE = Expert(GENERAL, "General", "", "")
QUESTION = (Message("user", "one two three"),)


def tuned(folder: Path, rank: int = 8) -> Expert:
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}), "utf-8")
    return Expert("sleep", "Sleep", "", "", adapters={"base": Adapter(folder, "0123456789abcdef" * 4)})


def options(*args: str, command: list[str] | None = None, start_timeout_s: float = 20.0) -> VLLMOptions:
    return VLLMOptions(command or STAND_IN, "some/model", "base", args, start_timeout_s)


@asynccontextmanager
async def engine_of(opted: VLLMOptions, **more: Any) -> AsyncIterator[VLLMEngine]:
    engine = VLLMEngine(opted, served_model_names("base"), first_pause_s=0.01, poll_s=0.02, **more)
    try:
        yield engine
    finally:
        await engine.close()


async def said(engine: VLLMEngine, expert: Expert = BASE) -> str:
    return "".join([chunk.text async for chunk in engine.stream(expert, QUESTION, GenerationParams())])


def server(engine: VLLMEngine) -> dict[str, Any]:
    return engine.status()["server"]  # type: ignore[return-value]


async def test_it_starts_loads_the_adapters_answers_and_ends_with_all_its_processes(tmp_path: Path) -> None:
    expert = tuned(tmp_path)
    async with engine_of(options(), adapters=expert.adapters.values()) as engine:
        assert server(engine)["state"] == "not_started"
        await engine.warm_up(BASE)
        await engine.warm_up(expert)
        assert await said(engine) == "[base] one two three "
        assert await said(engine, expert) == "[sleep@0123456789ab] one two three "
        status = engine.status()
        assert (status["engine"], status["unusable"]) == ("vllm", None)
        assert (server(engine)["state"], server(engine)["starts"]) == ("ready", 1)
        leader = server(engine)["pid"]
        assert len(members_of(leader)) == 2
    assert members_of(leader) == set()


async def test_the_first_question_starts_it_where_nothing_else_did() -> None:
    async with engine_of(options()) as engine:
        assert await asyncio.gather(said(engine), said(engine)) == ["[base] one two three "] * 2
        assert server(engine)["starts"] == 1


async def test_a_question_does_not_wait_for_a_server_that_is_being_started() -> None:
    async with engine_of(options("--fake-fault", "never-healthy")) as engine:
        warming = asyncio.create_task(engine.warm_up(BASE))
        await until(lambda: server(engine)["pid"] is not None)
        with pytest.raises(UpstreamsDownError, match=r"vLLM is starting: \d+ s so far, usually 130 to 160 s") as caught:
            await said(engine)
        assert caught.value.retry_after_s
        assert "starting" in str(engine.status()["unusable"])
        warming.cancel()
        await asyncio.wait({warming})


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_one_that_dies_is_started_again_and_has_its_adapters_again(tmp_path: Path, how: signal.Signals) -> None:
    expert = tuned(tmp_path)
    async with engine_of(options()) as engine:
        await engine.warm_up(expert)
        leader = server(engine)["pid"]
        (child,) = members_of(leader) - {leader}
        os.kill(child, how)
        await until(lambda: server(engine)["starts"] == 2 and server(engine)["state"] == "ready")
        assert f"ended by signal {how.value}" in server(engine)["last_failure"]
        assert await said(engine, expert) == "[sleep@0123456789ab] one two three "
        assert members_of(leader) == set()


async def test_the_error_that_is_told_is_the_first_one_which_the_others_only_report() -> None:
    lines = [
        "(APIServer pid=7) WARNING 11-23 [system_utils.py:299] errors like `OSError: [Errno 24] Too many open files`.",
        "(EngineCore pid=8) ERROR 11-23 [core.py:1231] EngineCore failed to start.",
        "(EngineCore pid=8) ERROR 11-23 [core.py:1231]     raise ValueError(",
        "(EngineCore pid=8) ERROR 11-23 [core.py:1231] ValueError: Free memory on device cuda:0 (18.74/79.18 GiB).",
        "(APIServer pid=7)     raise RuntimeError(",
        "(APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    dies = [sys.executable, "-c", f"import sys; print({chr(10).join(lines)!r}); sys.exit(1)"]
    async with engine_of(options(command=dies)) as engine:
        with pytest.raises(NotReadyError, match=r"Its error: .*ValueError: Free memory on device"):
            await engine.warm_up(BASE)


async def test_one_that_dies_each_time_is_given_up_with_its_last_words() -> None:
    async with engine_of(options("--fake-fault", "die")) as engine:
        with pytest.raises(NotReadyError, match=rf"given up after {ATTEMPTS} starts.*status 3.*told to die"):
            await engine.warm_up(BASE)
        assert "told to die" in str(engine.status()["unusable"])
        with pytest.raises(NotReadyError, match="given up"):
            await said(engine)


async def test_one_that_never_answers_is_ended_and_given_up() -> None:
    async with engine_of(options("--fake-fault", "never-healthy", start_timeout_s=0.2)) as engine:
        with pytest.raises(NotReadyError, match=r"did not answer within 0\.2 s"):
            await engine.warm_up(BASE)
        assert server(engine)["pid"] is None


async def test_a_program_that_is_not_there_is_named() -> None:
    async with engine_of(options(command=["/no/such/vllm"])) as engine:
        with pytest.raises(NotReadyError, match="no program '/no/such/vllm'"):
            await engine.warm_up(BASE)


async def test_its_lines_are_logged_without_the_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "expert_router")
    says = ["sh", "-c", 'echo "ERROR 11-22 the key is $KEY, the sampler $SAMPLER"; printf "%070000d\\n" 7; exit 4']
    program = ChildProgram(
        "child", says, "soon", {"KEY": "secret-1"}, {"SAMPLER": "proposed", "HOME": "/elsewhere"}, secret="secret-1"
    )
    supervisor = Supervisor(program, never, first_pause_s=0.01, poll_s=0.01)
    supervisor.begin()
    assert not await supervisor.settled()
    await supervisor.stop()
    (line, *_) = [record for record in caplog.records if "the key is" in record.getMessage()]
    assert (line.levelname, line.getMessage()) == ("ERROR", "ERROR 11-22 the key is ***, the sampler proposed")
    assert any(len(record.getMessage()) == 70000 for record in caplog.records)


async def never() -> bool:
    return False


async def test_one_that_does_not_listen_is_killed_with_what_it_started() -> None:
    program = ChildProgram("child", ["sh", "-c", "trap '' TERM; sleep 600 & sleep 600"], "soon", grace_s=0.2)
    supervisor = Supervisor(program, never, poll_s=0.01)
    supervisor.begin()
    await until(lambda: supervisor.pid is not None and len(members_of(supervisor.pid)) == 4)
    leader = supervisor.pid
    assert leader is not None
    await supervisor.stop()
    assert members_of(leader) == set()


KILLED = """
import asyncio, sys
from expert_router.engines.remote.supervisor import ChildProgram, Supervisor

async def never():
    return False

async def main():
    supervisor = Supervisor(ChildProgram("child", ["sh", "-c", "sleep 600 & sleep 600"], "soon", grace_s=1.0), never)
    supervisor.begin()
    while supervisor.pid is None:
        await asyncio.sleep(0.01)
    print(supervisor.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("whom", ["server", "leash"])
def test_nothing_is_left_behind_by_a_kill(whom: str) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        leader = int(process.stdout.readline())
        eventually(lambda: len(members_of(leader)) == 4)
        os.kill(process.pid if whom == "server" else leader, signal.SIGKILL)
        eventually(lambda: not members_of(leader))
        process.kill()


def test_the_command_line_has_room_for_every_adapter(tmp_path: Path) -> None:
    experts = [tuned(tmp_path, rank=40)]
    adapters = [adapter for expert in experts for adapter in expert.adapters.values()]
    line = options("--attention-backend", "FLASH_ATTN", "--max-loras", "9").command_line(4711, adapters)
    assert line[: len(STAND_IN) + 2] == [*STAND_IN, "serve", "some/model"]
    assert line[-4:] == ["--attention-backend", "FLASH_ATTN", "--max-loras", "9"]
    shown = " ".join(line)
    for part in ("--served-model-name base", "--host 127.0.0.1", "--port 4711", "--max-loras 3", "--max-lora-rank 64"):
        assert part in shown
    assert "--max-lora-rank 16" in " ".join(options().command_line(1, []))
    tuned(tmp_path, rank=1024)
    with pytest.raises(ConfigError, match="up to rank 512"):
        options().command_line(1, adapters)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match="does not say the adapter's rank"):
        options().command_line(1, adapters)
