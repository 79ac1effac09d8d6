"""The engine of the settings before real servers, and the experts of the catalogue behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_router.catalogue import Catalogue
from expert_router.evaluation.fake_vllm import FakeVLLM
from expert_router.serving.build import build_engine
from expert_router.serving.parts import build_parts
from expert_router.settings import EngineSettings, Settings
from expert_router.types import GenerationParams, Message
from support import make_home, until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

HASH = "0123456789abcdef" * 4
QUESTION = (Message("user", "Why?"),)


def home_with_adapters(folder: Path) -> Path:
    home = make_home(folder)
    for name in ("sleep", "cars"):
        (home / "experts" / name / "adapters" / "base").mkdir(parents=True)
        with (home / "experts" / name / "expert.toml").open("a", encoding="utf-8") as manifest:
            manifest.write(f'\n[adapters]\nbase = {{ path = "adapters/base", sha256 = "{HASH}" }}\n')
    return home


async def test_the_adapter_of_an_expert_that_is_removed_is_unloaded_and_loaded_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPERT_ROUTER_PATHS__CATALOGUE", str(tmp_path / "catalogue"))
    server = FakeVLLM("base")
    await server.start()
    settings = Settings(
        home=home_with_adapters(tmp_path / "home"),
        engine=EngineSettings(name="openai_http", base_model="base", upstreams=[server.url], check_interval_s=0.02),
    )
    parts = build_parts(settings)
    engine = build_engine(parts)
    sleep, cars = f"sleep@{HASH[:12]}", f"cars@{HASH[:12]}"
    try:
        for expert in parts.experts.values():
            await engine.warm_up(expert)
        assert server.adapters[sleep] == str(settings.home / "experts" / "sleep" / "adapters" / "base")
        assert set(server.adapters) == {sleep, cars}
        catalogue = Catalogue(tmp_path / "catalogue")
        catalogue.change("remove sleep", hide={"sleep"})
        await until(lambda: set(server.adapters) == {cars})
        catalogue.rollback(None)
        answer = [chunk.text async for chunk in engine.stream(parts.experts["sleep"], QUESTION, GenerationParams())]
        assert answer[0] == f"[{sleep}] "
        assert server.loads == [cars, sleep, sleep]
    finally:
        await engine.close()
        await server.kill()
