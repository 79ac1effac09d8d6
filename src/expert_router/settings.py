"""Settings: defaults, then ``configs/<profile>.toml``, then ``.env``, then ``EXPERT_ROUTER_*`` variables.

Read once, at an entry point, and handed down. This is the only module that reads the environment. A key that does
not exist is an error that names it. Fields carry their unit; ``None`` means off.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

ENV_PREFIX = "EXPERT_ROUTER_"
HOME_MARKER = "models.lock"


def find_home() -> Path:
    """The checkout's root: the nearest folder above the working directory with ``models.lock``, else the package's.

    ``EXPERT_ROUTER_HOME`` overrides it. Raises ``ConfigError`` when there is none.
    """
    package_root = Path(__file__).resolve().parents[2]
    for folder in [Path.cwd(), *Path.cwd().parents, package_root]:
        if (folder / HOME_MARKER).is_file():
            return folder
    raise ConfigError(
        f"No {HOME_MARKER} was found above {Path.cwd()}: run this inside the checkout, or set {ENV_PREFIX}HOME to it."
    )


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "expert-router"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s,]+)$")]


class ServerSettings(Section):
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8000, ge=0, le=65535)
    workers: int = Field(default=1, ge=1)
    """Processes that answer, each with an engine of its own and the limits of `serving` for itself."""
    max_body_bytes: int = Field(default=1_048_576, ge=1)
    max_head_bytes: int = Field(default=32_768, ge=256)
    """Of a request's first line and headers."""
    max_headers: int = Field(default=100, ge=1)
    max_connections: int = Field(default=1000, ge=1)
    """In each process; more are refused at once."""
    head_timeout_s: float = Field(default=10.0, gt=0)
    """So long a connection may take to send a request's head."""
    body_timeout_s: float = Field(default=60.0, gt=0)
    """So long it may take to send the body."""
    request_timeout_s: float | None = Field(default=600.0, gt=0)
    """The longest a request of the API may take, with its wait, its answer and its client's reading."""
    keep_alive_s: float = Field(default=15.0, gt=0)
    """How often an idle stream sends a comment, so that proxies keep it open."""
    shutdown_grace_s: float = Field(default=10.0, gt=0)
    admin_key: str | None = Field(default=None, min_length=16)
    """Who sends it as a bearer token may add and remove experts over HTTP, as an admin's key of ``keys`` may; without
    either nobody may."""
    keys: Path | None = None
    """A file of keys (`expert-router keys add NAME`); with one every request needs a key, but those for health.
    ``None``: nobody needs one, and the server listens on loopback alone."""
    open_metrics: bool = False
    """Give `/metrics` without a key, where nobody but a scraper can reach it."""
    insecure: bool = False
    """Listen beyond loopback without keys, for whoever reaches it (``--insecure``)."""
    cors_origins: tuple[Origin, ...] = ()
    """Sites whose pages may ask, like `https://app.example.org`, with a key of theirs; `*` for all."""
    tls_cert: Path | None = None
    """A certificate in PEM, with those between it and its root: the server speaks HTTPS. ``None``: HTTP."""
    tls_key: Path | None = None
    """Its key, where it is not in the same file."""


class RouterSettings(Section):
    name: str = "embedding"
    artifact: Path = Path("artifacts/router")
    encoder: str = "all-minilm-l6-v2"
    """An entry of models.lock."""
    tuned_encoder: Path | None = Path("artifacts/encoder")
    """An encoder fine-tuned for routing; ``None`` uses ``encoder`` as it was published."""
    zero_shot_model: str = "facebook/bart-large-mnli"
    """A hub name or a local folder."""
    on_general: Literal["answer", "refuse"] = "answer"
    """When no expert fits: let the base model answer, marked as such, or refuse."""
    on_ambiguous: Literal["clarify", "best", "all"] = "clarify"
    """When several may be meant: ask which (`clarify`), take the most probable (`best`), or let all answer (`all`)."""
    coverage: float = Field(default=0.95, ge=0.5, lt=1)
    """How often the right one must be among those that may be meant: the higher, the more often it is asked back."""


class EngineSettings(Section):
    name: str = "openvino"
    """`openvino`; `llamacpp`, which takes any GGUF and adds adapters while it runs (install the extra llamacpp);
    `openai_http`, one or several other servers; `vllm`, such a server that is started here, on a GPU; or `echo`."""
    base_model: str = "qwen2.5-coder-0.5b-instruct"
    """An entry of models.lock; an expert's manifest may name another."""
    threads: int | None = Field(default=None, ge=1)
    """``None`` derives the count from the CPU quota and affinity."""
    max_model_bytes: int = Field(default=6 * 1024**3, ge=1)
    """Loaded models beyond this are unloaded, least recently used first; `llamacpp`: and adapters left out."""
    kv_cache_bytes: int = Field(default=1024**3, ge=1)
    """Paged attention cache of one loaded model; above one GiB in whole ones."""
    max_batch_size: int = Field(default=64, ge=1)
    """Answers of one model at once; `llamacpp` has 16 at most, and the others wait."""
    stack_size: int = Field(default=8, ge=0)
    """So many experts' adapters share a copy of their base's weights and a batch; with 0 or 1 each is merged into its
    own."""
    repetition_penalty: float = Field(default=1.05, ge=1, le=2)
    """Above 1 a token that was used before becomes less likely: small models fall into loops without it."""
    reproducible: bool = False
    """Greedy answers alike alone and in a batch, on any x86 CPU, at about 60 % of the speed under load."""
    lookup_tokens: int = Field(default=7, ge=0, le=31)
    """``openvino`` only: experts with knowledge quote, so that many tokens of an answer are guessed from what it reads,
    and checked, at a time; with 0 none."""
    step_tokens: int | None = Field(default=None, ge=32)
    """``openvino`` only: so many tokens are computed at once at most, one of each answer and else of prompts. With
    fewer, others' answers halt less while a prompt is read and who leaves is gone sooner, but reading takes longer;
    ``None`` derives it from the model's size and the threads."""
    step_timeout_s: float | None = Field(default=None, gt=0)
    """An embedded model of which one step takes longer hangs and is replaced; ``None`` derives it from its size."""
    base_url: str = "http://127.0.0.1:9000/v1"
    """``openai_http`` only: where the OpenAI-compatible server is."""
    upstreams: list[str] = []
    """``openai_http`` only: several servers in place of ``base_url``, which serve alike; some may be taken out while it
    runs (`expert-router upstream drain`)."""
    check_interval_s: float = Field(default=5.0, gt=0)
    """So often each of them is asked what it serves, which it has 5 s to say."""
    api_key: str | None = None
    connect_timeout_s: float = Field(default=5.0, gt=0)
    read_timeout_s: float = Field(default=60.0, gt=0)
    """``openai_http`` only: the longest silence between two pieces of an answer."""
    revision: str | None = Field(default=None, min_length=1)
    """``openai_http`` only: stands for the weights, templates and settings behind that server's names. Change it when
    they change; without one none of its answers is kept."""
    vllm_command: list[str] = Field(default=["vllm"], min_length=1)
    """``vllm`` only: the program, with what comes before its `serve`."""
    vllm_args: list[str] = ["--attention-backend", "FLASH_ATTN", "--no-enable-flashinfer-autotune"]
    """``vllm`` only: the end of its command line, where the last of two alike counts."""
    vllm_model: str | None = Field(default=None, min_length=1)
    """``vllm`` only: the folder or hub name that it loads as ``base_model``; needed for one of models.lock."""
    vllm_start_timeout_s: float = Field(default=600.0, gt=0)
    """``vllm`` only: so long it may take to start."""


class KnowledgeSettings(Section):
    passages: int = Field(default=5, ge=0, le=20)
    """How many an expert reads at most before it answers, the first one whole; 0 switches retrieval off."""
    margin: float = Field(default=0.1, ge=0)
    """Of these the best two, and others whose score (a cosine, and what shared words add) is at most so far below the
    best one's."""


class ServingSettings(Section):
    max_running: int | None = Field(default=None, ge=1)
    """Answers that are computed at once. ``None``: 16 for each thread of an engine in here, from where on more of them
    wait longer and gain little, and 64 elsewhere."""
    max_prefills: int | None = Field(default=None, ge=1)
    """Of these so many have no token yet: the others wait outside, by turns, while prompts are read. ``None``: 2 of an
    engine in here, which reads one after the other, and any number elsewhere."""
    max_queue: int = Field(default=256, ge=0)
    client_share: float = Field(default=0.5, gt=0, le=1)
    """One client may take so much of the queue that others leave; 1 lets it take all."""
    expected_wait_s: float | None = Field(default=0.5, gt=0)
    """Where a queue has stood for longer, a request over HTTP whose turn is farther off, by the measured rate, is
    refused at once, so that those that are let in keep their latency; with `Prefer: wait=10` it names its own time.
    ``None``: as `queue_timeout_s`."""
    queue_timeout_s: float = Field(default=30.0, gt=0)
    """So long a request waits for its turn at most, whatever it prefers."""
    max_tokens: int = Field(default=256, ge=1)
    """Used when a request names no limit."""


class CacheSettings(Section):
    store: Literal["memory", "redis", "none"] = "memory"
    """Where whole answers are kept, to be given again where the very same is asked: `memory`, `redis`, which processes
    can share (install the extra redis), or nowhere (`none`)."""
    ttl_s: float = Field(default=3600.0, gt=0)
    """So long an answer is kept."""
    max_bytes: int = Field(default=64 * 1024**2, ge=1)
    """`memory` only: beyond this the least recently used answers go."""
    redis_url: str = "redis://127.0.0.1:6379/0"
    """`redis` only: redis, rediss or unix; with a password where there is one."""
    sampled: bool = False
    """Give answers again that chance had a part in (temperature above 0), too."""
    namespace: str = ""
    """Systems with different ones share no answer."""
    per_client: bool = False
    """Clients share no answer either: for each only its own is given again."""
    semantic: bool = False
    """Give the answer to an earlier question again where this one asks the same in other words; the person who asks is
    shown that question."""
    semantic_similarity: float = Field(default=0.8, ge=0, le=1)
    """The least cosine of two questions that are compared word by word."""
    semantic_answers: int = Field(default=1000, ge=1)
    """The answers to so many questions are kept for this, in each process; the least recently used go first."""


class DecisionLogSettings(Section):
    path: Path | None = None
    """A SQLite file to keep decisions and feedback in, made when it is first needed; ``None`` keeps nothing."""
    retention_days: float | None = Field(default=30.0, gt=0)
    """Older decisions are deleted, with their feedback; ``None`` deletes none for their age."""
    redact: bool = True
    """Addresses, phone numbers, links, long numbers and keys are taken out of the questions that are kept."""
    max_rows: int = Field(default=100_000, ge=1)
    """Beyond these the oldest decisions are deleted."""


class TelemetrySettings(Section):
    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://[^/\s]+")
    """Where traces go, a collector's address for OTLP over HTTP, as `http://127.0.0.1:4318` (install the extra
    traces); ``None`` makes none."""
    log_questions: bool = False
    """Write the text of questions, redacted, into logs and traces."""


class RaySettings(Section):
    """Of `serve --ray` alone (install the extra ray)."""

    gateways: int = Field(default=1, ge=1)
    """Processes that route, each with the limits of `serving` and a cache of its own."""
    gateway_cpus: float = Field(default=1.0, ge=0)
    """Processors that a gateway is counted with."""
    min_replicas: int = Field(default=1, ge=1)
    """Engines that run at least."""
    max_replicas: int = Field(default=1, ge=1)
    """Engines that run at most."""
    replica_cpus: float = Field(default=1.0, gt=0)
    """Processors that an engine is counted with, and its threads, unless `engine.threads` names them."""
    target_ongoing_requests: int = Field(default=8, ge=1)
    """An engine is meant to have so many at once: with more on average others are started, and an expert goes to one
    more of them."""
    upscale_delay_s: float = Field(default=10.0, ge=0)
    downscale_delay_s: float = Field(default=300.0, ge=0)
    surge_percent: float = Field(default=20.0, ge=0, le=100)
    """An update starts so many engines more, at least one, before it ends old ones; 0 where there is no room."""
    drain_s: float = Field(default=300.0, ge=0)
    """So long a process that is to end may go on with the answers it has begun."""
    silence_s: float = Field(default=15.0, ge=5)
    """An engine that gives no sign of life for so long is given up."""
    placement: Literal["affine", "random"] = "affine"
    """To engines that hold the expert (`affine`), or by chance (`random`), to compare."""


class PathsSettings(Section):
    experts: Path = Path("experts")
    models_lock: Path = Path("models.lock")
    data: Path = Path("data")
    catalogue: Path = Path("catalogue")
    """Experts that were added while the system ran, in numbered versions."""
    cache: Path = Field(default_factory=_default_cache)


class Settings(BaseSettings):
    """The whole configuration. Relative paths are relative to ``home``, the checkout's root."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, env_file_encoding="utf-8"
    )

    home: Path = Field(default_factory=find_home)
    profile: str = "default"
    hf_token: str | None = None
    key: str | None = None
    """What commands send to a server that asks for one."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    server: ServerSettings = ServerSettings()
    router: RouterSettings = RouterSettings()
    engine: EngineSettings = EngineSettings()
    knowledge: KnowledgeSettings = KnowledgeSettings()
    serving: ServingSettings = ServingSettings()
    cache: CacheSettings = CacheSettings()
    decision_log: DecisionLogSettings = DecisionLogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    ray: RaySettings = RaySettings()
    paths: PathsSettings = Field(default_factory=PathsSettings)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (env_settings, init_settings)

    KNOWN_ELSEWHERE: ClassVar[frozenset[str]] = frozenset({"CONFIG"})

    def resolve(self, path: Path) -> Path:
        """An absolute path; a relative one counts from ``home``."""
        return path if path.is_absolute() else self.home / path


def load_settings(config: str | Path | None = None, **overrides: Any) -> Settings:
    """Read the settings of a profile name (``tiny``) or a TOML path; ``overrides`` replace whole top-level keys.

    Raises ``ConfigError`` that names the file and the key at fault.
    """
    home = Path(os.environ.get(f"{ENV_PREFIX}HOME") or find_home())
    _load_dotenv(home / ".env")
    chosen = str(config or os.environ.get(f"{ENV_PREFIX}CONFIG") or "default")
    path = Path(chosen) if chosen.endswith(".toml") else home / "configs" / f"{chosen}.toml"
    values = _read_toml(path)
    _refuse_unknown_environment()
    token = os.environ.get("HF_TOKEN")
    fixed: dict[str, Any] = {"home": home, "profile": path.stem, **({"hf_token": token} if token else {})}
    try:
        return Settings(**{**values, **fixed, **overrides})
    except ValidationError as error:
        problems = "; ".join(map(_problem, error.errors()))
        raise ConfigError(f"Settings from {path} and the environment are not valid: {problems}") from error
    except SettingsError as error:  # a whole section in one variable that is not JSON
        raise ConfigError(f"The environment is not valid: {error}") from error


def _problem(error: ErrorDetails) -> str:
    """One line about a value that is not valid; of a key that does not exist, the ones that do."""
    *within, key = map(str, error["loc"])
    place = ".".join([*within, key])
    if error["type"] != "extra_forbidden":
        return f"{place}: {error['msg']}"
    section = Settings.model_fields[within[0]].annotation if within else Settings
    known = sorted(getattr(section, "model_fields", ()))
    return f"{place}: there is no such setting. Known: {', '.join(known)} (docs/settings.md)"


def _load_dotenv(path: Path) -> None:
    """Put ``.env`` into the environment (real variables win): the hub's client reads HF_TOKEN from there too."""
    from dotenv import load_dotenv  # noqa: PLC0415 - pydantic-settings' own dependency

    try:
        load_dotenv(path, override=False)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.toml"))) or "none (a file is named with .toml)"
        raise ConfigError(f"There is no configuration {path}. Profiles there: {known}.") from None
    except (ValueError, RecursionError) as error:  # also text that is not UTF-8
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _refuse_unknown_environment() -> None:
    known = {name.upper() for name in Settings.model_fields} | Settings.KNOWN_ELSEWHERE
    for variable in os.environ:
        name = variable.removeprefix(ENV_PREFIX)
        if name != variable and name.split("__")[0].upper() not in known:
            raise ConfigError(f"{variable} is not a setting. Known: {', '.join(sorted(known))} (docs/settings.md).")
