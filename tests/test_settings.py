from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from expert_router.errors import ConfigError
from expert_router.settings import find_home, load_settings
from support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _environment_as_found() -> Iterator[None]:
    """Reading a .env file fills the process's environment: give it back, and begin without the user's settings."""
    before = dict(os.environ)
    for name in before:
        if name.startswith("EXPERT_ROUTER_") or name == "HF_TOKEN":
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the profiles ``default`` (empty) and ``small``; the working directory is in it."""
    (tmp_path / "models.lock").touch()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/default.toml").touch()
    (tmp_path / "configs/small.toml").write_text('[engine]\nname = "echo"\nthreads = 3\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_toml(text: str) -> None:
    Path("configs/default.toml").write_text(text)


@pytest.mark.parametrize(
    ("toml", "dotenv", "environment", "expected"),
    [("", "", "", 256), ("1", "", "", 1), ("1", "2", "", 2), ("1", "2", "3", 3), ("", "2", "", 2), ("1", "", "3", 3)],
)
def test_the_environment_wins_over_dotenv_and_dotenv_over_toml(
    monkeypatch: pytest.MonkeyPatch, toml: str, dotenv: str, environment: str, expected: int
) -> None:
    if toml:
        write_toml(f"[serving]\nmax_tokens = {toml}\n")
    if dotenv:
        Path(".env").write_text(f"EXPERT_ROUTER_SERVING__MAX_TOKENS={dotenv}\n")
    if environment:
        monkeypatch.setenv("EXPERT_ROUTER_SERVING__MAX_TOKENS", environment)
    assert load_settings().serving.max_tokens == expected


def test_a_variable_replaces_one_key_and_leaves_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERT_ROUTER_ENGINE__NAME", "openvino")
    engine = load_settings("small").engine
    assert (engine.name, engine.threads) == ("openvino", 3)


def test_a_section_may_be_one_variable_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERT_ROUTER_SERVER", '{"port": 81, "host": "::1"}')
    server = load_settings().server
    assert (server.port, server.host, server.max_body_bytes) == (81, "::1", 1_048_576)
    monkeypatch.setenv("EXPERT_ROUTER_SERVER", "port 81")
    with pytest.raises(ConfigError, match=r'The environment is not valid: .*"server"'):
        load_settings()


@pytest.mark.parametrize(
    ("toml", "key"),
    [
        ("colour = 1", "colour"),
        ("[engin]\nname = 'echo'", "engin"),
        ("[engine]\nnmae = 'echo'", r"engine\.nmae"),
        ("[server]\nport = 'many'", r"server\.port"),
        ("[server]\nport = 65536", r"server\.port"),
        ("[serving]\nmax_running = 0", r"serving\.max_running"),
        ("[router]\non_general = 'guess'", r"router\.on_general"),
        ("engine = 'echo'", "engine"),
        ("log_level = 'loud'", "log_level"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_file(toml: str, key: str) -> None:
    write_toml(toml)
    with pytest.raises(ConfigError, match=rf"default\.toml.*\b{key}: "):
        load_settings()


@pytest.mark.parametrize("name", ["EXPERT_ROUTER_COLOUR", "EXPERT_ROUTER_ENGINE_NAME", "EXPERT_ROUTER_ENGIN__NAME"])
@pytest.mark.parametrize("from_file", [False, True])
def test_an_unknown_variable_is_named_with_the_known_ones(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, from_file: bool
) -> None:
    if from_file:
        (home / ".env").write_text(f"{name}=1\n")
    else:
        monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=rf"^{name} is not a setting\. Known: .*ENGINE.*ROUTER.*SERVER"):
        load_settings()


def test_an_unknown_key_in_a_known_section_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERT_ROUTER_ENGINE__NMAE", "echo")
    with pytest.raises(
        ConfigError, match=r"engine\.nmae: there is no such setting\. Known: .*max_model_bytes, name, .*"
    ):
        load_settings()


def test_an_unknown_section_of_the_file_is_named_with_the_known_ones() -> None:
    write_toml("[sever]\nport = 1")
    with pytest.raises(ConfigError, match=r"\bsever: there is no such setting\. Known: .*router, server, serving"):
        load_settings()


def test_the_token_comes_from_dotenv_and_the_hubs_client_finds_it_too(home: Path) -> None:
    assert load_settings().hf_token is None
    (home / ".env").write_text('# comment\nHF_TOKEN="hf_file"\n')
    assert load_settings().hf_token == "hf_file"
    assert os.environ["HF_TOKEN"] == "hf_file"


def test_a_token_in_the_environment_wins_over_dotenv(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".env").write_text("HF_TOKEN=hf_file\n")
    monkeypatch.setenv("HF_TOKEN", "hf_real")
    assert load_settings().hf_token == "hf_real"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[engine\n", r"default\.toml is not valid TOML: .*line 1"),
        (b"name = 'Tr\xe4ume'\n", r"default\.toml is not valid TOML: 'utf-8' codec"),
    ],
)
def test_toml_that_is_none_is_refused_with_its_place(home: Path, content: bytes, message: str) -> None:
    (home / "configs/default.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_settings()


def test_a_folder_is_no_configuration(home: Path) -> None:
    (home / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.toml cannot be read: Is a directory"):
        load_settings(home / "folder.toml")


def test_a_dotenv_file_that_is_no_text_is_refused(home: Path) -> None:
    (home / ".env").write_bytes(b"HF_TOKEN=\xe4\n")
    with pytest.raises(ConfigError, match=r"\.env is not UTF-8 text"):
        load_settings()


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"There is no configuration .*big\.toml\. Profiles there: default, small\."):
        load_settings("big")


def test_a_profile_is_a_name_or_a_file_or_a_variable(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = home / "mine.toml"
    elsewhere.write_text("[serving]\nmax_tokens = 9\n")
    assert (load_settings("small").profile, load_settings("small").engine.name) == ("small", "echo")
    assert load_settings(elsewhere).serving.max_tokens == load_settings(str(elsewhere)).serving.max_tokens == 9
    monkeypatch.setenv("EXPERT_ROUTER_CONFIG", "small")
    assert load_settings().profile == "small"
    assert load_settings("default").profile == "default"


def test_dotenv_may_choose_the_profile(home: Path) -> None:
    (home / ".env").write_text("EXPERT_ROUTER_CONFIG=small\n")
    assert load_settings().profile == "small"


def test_home_is_found_from_a_folder_below_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = home / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert find_home() == home
    assert load_settings().home == home


def test_outside_of_any_checkout_home_is_the_packages_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert find_home() == ROOT


def test_home_may_be_said(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    monkeypatch.setenv("EXPERT_ROUTER_HOME", str(home))
    settings = load_settings("small")
    assert settings.home == home
    assert settings.engine.threads == 3


def test_relative_paths_count_from_home(home: Path) -> None:
    settings = load_settings()
    assert settings.resolve(settings.paths.experts) == home / "experts"
    assert settings.resolve(Path("/absolute")) == Path("/absolute")


def test_the_cache_is_the_users_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    assert load_settings().paths.cache == home / "cache" / "expert-router"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert load_settings().paths.cache == Path.home() / ".cache" / "expert-router"


def test_settings_cannot_be_changed() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.log_level = "debug"
    with pytest.raises(ValueError, match="frozen"):
        settings.server.port = 1


@pytest.mark.parametrize("profile", [path.stem for path in sorted((ROOT / "configs").glob("*.toml"))])
def test_every_shipped_profile_is_valid(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert load_settings(profile).profile == profile


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_every_profile_that_ships_is_valid(path: Path) -> None:
    assert load_settings(path).profile == path.stem


def test_mistral_is_served_from_another_process() -> None:
    engine = load_settings(ROOT / "configs" / "mistral-7b.toml").engine
    assert (engine.name, engine.base_model) == ("openai_http", "mistralai/Mistral-7B-Instruct-v0.3")
