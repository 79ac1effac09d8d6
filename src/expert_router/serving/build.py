"""The composition root: settings in, a working dispatcher out. The only module that knows every router and engine."""

from __future__ import annotations

import logging
from math import inf
from typing import TYPE_CHECKING

from expert_router.caching.engine import CachingEngine
from expert_router.caching.key import Keeping
from expert_router.caching.memory import MemoryStore
from expert_router.caching.similar import SimilarAnswers
from expert_router.catalogue import ROUTER_FOLDER, read_taught
from expert_router.data.labelled import LabelledQuestion, read_labelled
from expert_router.decision_log import DecisionStore
from expert_router.engines.threads import inference_threads
from expert_router.errors import ConfigError
from expert_router.registry import Registry
from expert_router.routing.policy import Policy
from expert_router.serving.admission import Admission
from expert_router.serving.admitted import AdmittedEngine
from expert_router.serving.asked_before import AskedBefore
from expert_router.serving.decision_writer import DecisionWriter
from expert_router.serving.deployment import Deployment, Library
from expert_router.serving.dispatcher import Dispatcher
from expert_router.serving.parts import Parts, build_parts
from expert_router.serving.repeating import Repeating
from expert_router.telemetry.request_log import LoggedRequests

if TYPE_CHECKING:
    from collections.abc import Mapping

    from expert_router.ports import AnswerStore, Engine, RequestObserver, Router
    from expert_router.routing.added import AddedHead
    from expert_router.routing.nearest import Examples, WithTaught
    from expert_router.settings import CacheSettings, Settings, TelemetrySettings
    from expert_router.types import Expert

logger = logging.getLogger(__name__)

ROUTERS: Registry[Router] = Registry("router")
ENGINES: Registry[Engine] = Registry("engine")

EMBEDDED = ("openvino", "llamacpp")
"""The engines that load weights into this process."""
ANSWERS_A_THREAD = 16
ANSWERS_ELSEWHERE = 64
PREFILLS = 2
ROUTER_EXAMPLES = "processed/routing_train.csv"


def build_dispatcher(
    settings: Settings, *, progress: bool = False, logged: bool = True, cached: bool = True
) -> Dispatcher:
    """Everything that serving needs, from the settings; base models are loaded when they are first asked.

    Brings the router's weights when they are missing. ``logged`` is false where nobody asks, ``cached`` where each
    answer has to be the engine's own, both when speed is measured. Raises ``ConfigError``, ``DataError`` or
    ``WeightsError``.
    """
    return build_system(build_parts(settings, progress=progress), logged=logged, cached=cached)


def build_system(parts: Parts, *, logged: bool = True, cached: bool = True, engine: Engine | None = None) -> Dispatcher:
    """``build_dispatcher`` of parts that are there; ``engine`` may stand for the settings' own."""
    store = decision_store(parts.settings) if logged else None  # before anything is loaded: it may be refused
    observers = build_observers(parts.settings.telemetry) if logged else []
    answers = answer_store(parts.settings.cache) if cached else None
    repeating = build_repeating(parts) if cached else None
    engine = build_engine(parts) if engine is None else engine
    router, library = build_router(parts), build_library(parts)
    dispatcher = assemble(parts, router, engine, library=library, store=store, answers=answers, repeating=repeating)
    dispatcher.observers += observers
    return dispatcher


def assemble(
    parts: Parts,
    router: Router,
    engine: Engine,
    *,
    library: Library | None,
    experts: Mapping[str, Expert] | None = None,
    store: DecisionStore | None = None,
    answers: AnswerStore | None = None,
    repeating: Repeating | None = None,
) -> Dispatcher:
    """A dispatcher of parts that are there; ``experts`` may stand for the settings' own, as without their adapters.

    The engine stands behind a door of the dispatcher's own; answers in ``answers`` are given without it.

    Several may share a router and an engine: closing one of them closes these for all.
    """
    deployed = build_deployment(parts, router, library, experts=experts, examples=build_examples(parts, router))
    serving = parts.settings.serving
    admission = Admission(
        max_running(parts.settings),
        serving.max_queue,
        serving.queue_timeout_s,
        serving.client_share,
        max_prefills=max_prefills(parts.settings),
    )
    engine = AdmittedEngine(engine, admission)
    asked_before = None
    if answers is not None:
        keeping = _keeping(parts.settings)
        engine = CachingEngine(engine, answers, keeping)
        asked_before = AskedBefore(keeping)
    log = DecisionWriter(store) if store is not None else None
    return Dispatcher(deployed, engine, admission, log=log, repeating=repeating, asked_before=asked_before)


def max_running(settings: Settings) -> int:
    """How many answers are computed at once."""
    if settings.serving.max_running is not None:
        return settings.serving.max_running
    if settings.engine.name not in EMBEDDED:
        return ANSWERS_ELSEWHERE
    return ANSWERS_A_THREAD * inference_threads(settings.engine.threads)


def max_prefills(settings: Settings) -> float:
    """How many prompts are read at once."""
    if settings.serving.max_prefills is not None:
        return settings.serving.max_prefills
    return PREFILLS if settings.engine.name in EMBEDDED else inf


def build_deployment(
    parts: Parts,
    router: Router,
    library: Library | None,
    *,
    experts: Mapping[str, Expert] | None = None,
    examples: Examples | WithTaught | None,
) -> Deployment:
    """Raises ``ConfigError`` when the router knows experts that are not there."""
    known = parts.experts if experts is None else experts
    if unknown := set(router.experts) - set(known):
        raise ConfigError(
            f"The router knows {sorted(unknown)}, which have no manifest. Run: expert-router train router"
        )
    policy = build_policy(router, known, parts.settings)
    taught = examples and examples.with_taught(_taught(parts))
    return Deployment(known, router, policy, library, taught, parts.version.number)


def _taught(parts: Parts) -> list[LabelledQuestion]:
    """What added experts were taught with."""
    return [
        LabelledQuestion(question, frozenset([name]), name)
        for name, folder in parts.version.added.items()
        for question in read_taught(folder)
    ]


def decision_store(settings: Settings) -> DecisionStore | None:
    """Where decisions are kept; ``None`` when that is off. Raises ``ConfigError`` when it cannot be written."""
    log = settings.decision_log
    if log.path is None:
        return None
    path = settings.resolve(log.path)
    store = DecisionStore(path, retention_days=log.retention_days, max_rows=log.max_rows, redacted=log.redact)
    store.check()
    return store


def build_observers(settings: TelemetrySettings) -> list[RequestObserver]:
    """Who is told what became of requests. Raises ``ConfigError`` where traces are wanted and cannot be made."""
    observers: list[RequestObserver] = [LoggedRequests(questions=settings.log_questions)]
    if settings.otlp_endpoint is not None:
        try:
            from expert_router.telemetry.traces import Traces
        except ImportError as error:
            raise ConfigError(
                f"telemetry.otlp_endpoint needs OpenTelemetry ({error}): pip install 'expert-router[traces]'"
            ) from error
        observers.append(Traces(settings.otlp_endpoint, questions=settings.log_questions))
    return observers


def answer_store(settings: CacheSettings) -> AnswerStore | None:
    """Where answers are kept to be given again; ``None`` when that is off. Raises ``ConfigError``."""
    if settings.store == "none":
        return None
    if settings.store == "memory":
        return MemoryStore(settings.max_bytes, settings.ttl_s)
    try:
        from expert_router.caching.redis_store import RedisStore
    except ImportError as error:
        raise ConfigError(
            f"cache.store is redis, which needs redis-py ({error}): pip install 'expert-router[redis]'"
        ) from error
    return RedisStore(settings.redis_url, settings.ttl_s)


def build_repeating(parts: Parts) -> Repeating | None:
    """What gives answers again to questions in other words; ``None`` when that is off. Raises ``ConfigError``."""
    cache = parts.settings.cache
    if not cache.semantic:
        return None
    if cache.store == "none":
        raise ConfigError(
            "cache.semantic gives kept answers again, and cache.store is none: name a store, or leave it."
        )
    answers = SimilarAnswers(
        parts.encoder, similarity=cache.semantic_similarity, max_answers=cache.semantic_answers, ttl_s=cache.ttl_s
    )
    return Repeating(answers, _keeping(parts.settings))


def _keeping(settings: Settings) -> Keeping:
    cache = settings.cache
    return Keeping(cache.namespace, cache.sampled, cache.per_client)


def build_library(parts: Parts) -> Library | None:
    """What the experts read from; ``None`` when retrieval is off or none of them has anything to read."""
    reading = parts.settings.knowledge
    if not reading.passages or not any(expert.knowledge for expert in parts.experts.values()):
        return None
    return Library(parts.knowledge, reading.passages, reading.margin)


def build_examples(parts: Parts, router: Router) -> Examples | None:
    """What the router was fitted on, to compare questions with; ``None`` for one that has no encoder of its own."""
    if router.name != "embedding":
        return None
    from expert_router.routing.nearest import Examples

    data, cache = map(parts.settings.resolve, (parts.settings.paths.data, parts.settings.paths.cache))
    return Examples(data / ROUTER_EXAMPLES, parts.encoder, cache / "examples")


def build_policy(router: Router, experts: Mapping[str, Expert], settings: Settings) -> Policy:
    """The settings' rules around the router's thresholds."""
    titles = {expert.name: expert.title for expert in experts.values()}
    return Policy(router.thresholds, titles, settings.router.on_general, settings.router.on_ambiguous)


def build_router(parts: Parts, name: str | None = None) -> Router:
    """The router named in the settings, or another by ``name``."""
    return ROUTERS[name or parts.settings.router.name](parts)


def build_engine(parts: Parts) -> Engine:
    return ENGINES[parts.settings.engine.name](parts)


@ROUTERS.register("embedding")
def _embedding(parts: Parts) -> Router:
    from expert_router.routing.embedding import EmbeddingRouter

    artifact, encoder = parts.artifact, parts.encoder
    if encoder.sha256 != artifact.encoder_sha256:
        raise ConfigError(
            "The router was fitted on another encoder than the configured one. Run: expert-router train router"
        )
    coverage, version = parts.settings.router.coverage, parts.version
    return EmbeddingRouter(encoder, artifact, parts.terms, coverage, added=_heads(parts), hidden=version.hidden)


def _heads(parts: Parts) -> list[AddedHead]:
    """What the router was taught of added experts; one that was taught to another router or encoder is left out."""
    from expert_router.routing.added import load_added

    heads = []
    for name, folder in parts.version.added.items():
        head = load_added(folder / ROUTER_FOLDER, parts.encoder.sha256)
        if head is not None:
            heads.append(head)
        else:
            logger.warning("%s was taught to another router, so nothing is routed to it: add it again", name)
    return heads


@ROUTERS.register("lexical")
def _lexical(parts: Parts) -> Router:
    from expert_router.routing.lexical import LexicalRouter

    examples = read_labelled(parts.settings.resolve(parts.settings.paths.data) / ROUTER_EXAMPLES)
    pairs = [(example.query, example.experts) for example in [*examples, *_taught(parts)]]
    return LexicalRouter(tuple(parts.experts), pairs)


@ROUTERS.register("zero_shot")
def _zero_shot(parts: Parts) -> Router:
    from expert_router.routing.zero_shot import ZeroShotRouter

    settings = parts.settings
    topics = {expert.name: expert.title.lower() for expert in parts.experts.values()}
    threads = inference_threads(settings.engine.threads)
    return ZeroShotRouter(topics, settings.router.zero_shot_model, settings.hf_token, threads)


@ENGINES.register("echo")
def _echo(parts: Parts) -> Engine:
    from expert_router.engines.echo import EchoEngine

    return EchoEngine()


@ENGINES.register("openai_http")
def _openai_http(parts: Parts) -> Engine:
    from expert_router.serving.remote import openai_http_engine

    return openai_http_engine(parts)


@ENGINES.register("vllm")
def _vllm(parts: Parts) -> Engine:
    from expert_router.serving.remote import vllm_engine

    return vllm_engine(parts)


@ENGINES.register("openvino")
def _openvino(parts: Parts) -> Engine:
    from expert_router.serving.embedded import openvino_engine

    return openvino_engine(parts)


@ENGINES.register("llamacpp")
def _llamacpp(parts: Parts) -> Engine:
    from expert_router.serving.embedded import llamacpp_engine

    return llamacpp_engine(parts)
