"""The system on a Ray cluster: gateways that route, and replicas of the engine that answer.

``serve run expert_router.deploy.ray_serve:build_app config=default``, or a RayService with that import path; on one
machine ``expert-router serve --ray``. Settings and experts are read once, where the application is built; paths must be
the same on every node.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from math import inf
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions, RequestRouterConfig
from ray.serve.exceptions import RayServeException

from expert_router.api.app import create_app
from expert_router.deploy.ray_engine import RayEngine
from expert_router.deploy.ray_replica import EngineReplica
from expert_router.deploy.ray_router import HELD, STATS_PERIOD_S
from expert_router.errors import ConfigError, NotReadyError
from expert_router.live.experts import LiveExperts
from expert_router.observability import configure_logging
from expert_router.serving.build import build_engine, build_system, max_prefills, max_running
from expert_router.serving.parts import Parts, build_parts
from expert_router.serving.prompts import BARE_BASE_MODEL
from expert_router.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from fastapi import FastAPI

    from expert_router.ports import Engine
    from expert_router.settings import Settings
    from expert_router.types import Expert

NAME = "expert-router"
LOCAL = "local"
GATEWAY, ENGINE = "gateway", "engine"
BESIDE_ANSWERS = 100
"""Requests of a gateway that need no engine: health checks, explanations, the list of experts."""
QUIET = {"enable_access_log": False}
"""The gateways log each request themselves."""
LOOK_BACK_S = 12.0
"""Over how long the load that asks for more replicas is averaged: more than the 10 s after which it is told."""
CONSTRUCTOR_RETRIES = 2
HEALTH_CHECK_PERIOD_S, HEALTH_CHECK_TIMEOUT_S = 2.0, 10.0


class EngineDeployment(EngineReplica):
    """Counts once its base model is loaded; experts' adapters are when they are first asked."""

    async def __init__(  # type: ignore[misc] # Ray awaits it
        self, settings: Settings, experts: Mapping[str, Expert], make_engine: Callable[[Parts], Engine]
    ) -> None:
        configure_logging(settings.log_level)
        engine = make_engine(Parts(settings, experts, progress=False))
        super().__init__(serve.get_replica_context().replica_id.unique_id, engine)
        await engine.warm_up(BARE_BASE_MODEL)

    def status(self) -> dict[str, object]:
        return {**super().status(), "node": ray.get_runtime_context().get_node_id()}

    def record_routing_stats(self) -> dict[str, list[str]]:
        """What the request routers know of it."""
        return {HELD: self.held()}

    async def __del__(self) -> None:
        """Ray awaits it, too, once the answers that it had begun are over."""
        await self.close()


class Gateway:
    """The API of ``api.app`` around a dispatcher like any other; its engine is the deployment behind ``engines``."""

    def __init__(
        self,
        settings: Settings,
        experts: Mapping[str, Expert],
        make_engine: Callable[[Parts], Engine],
        engines: Any,
    ) -> None:
        configure_logging(settings.log_level)
        described = make_engine(Parts(settings, experts, progress=False))
        self._settings = settings
        self._engine = RayEngine(engines, described, settings.ray.silence_s, settings.ray.min_replicas)

    def __serve_build_asgi_app__(self) -> FastAPI:
        parts = build_parts(self._settings)
        dispatcher = build_system(parts, engine=self._engine)
        return create_app(dispatcher, self._settings, warm_up=True, live=LiveExperts(parts, dispatcher))


def build_app(args: dict[str, str]) -> serve.Application:
    """``config`` in ``args`` is a profile or a TOML file. Raises ``ConfigError``."""
    if unknown := args.keys() - {"config"}:
        raise ConfigError(f"Unknown arguments: {', '.join(sorted(unknown))}. Known: config.")
    return application(load_settings(args.get("config")))


def application(settings: Settings, make_engine: Callable[[Parts], Engine] = build_engine) -> serve.Application:
    """Both deployments; ``make_engine`` makes a replica's engine, the settings' own unless told."""
    if settings.ray.max_replicas < settings.ray.min_replicas:
        raise ConfigError("ray.max_replicas is less than ray.min_replicas.")
    settings = _derived(settings)
    experts = dict(build_parts(settings).experts)
    engines = engine_deployment(settings).bind(settings, experts, make_engine)
    return gateway_deployment(settings).bind(settings, experts, make_engine, engines)


def engine_deployment(settings: Settings) -> serve.Deployment:
    wanted = settings.ray
    return serve.deployment(
        EngineDeployment,
        name=ENGINE,
        max_ongoing_requests=settings.engine.max_batch_size,
        logging_config=QUIET,
        ray_actor_options={"num_cpus": wanted.replica_cpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=wanted.min_replicas,
            max_replicas=wanted.max_replicas,
            target_ongoing_requests=wanted.target_ongoing_requests,
            look_back_period_s=LOOK_BACK_S,
            upscale_delay_s=wanted.upscale_delay_s,
            downscale_delay_s=wanted.downscale_delay_s,
        ),
        request_router_config=RequestRouterConfig(
            request_router_class="expert_router.deploy.ray_router:AffineRouter",
            request_router_kwargs={
                "overflow_at": wanted.target_ongoing_requests,
                "affine": wanted.placement == "affine",
            },
            request_routing_stats_period_s=STATS_PERIOD_S,
        ),
        max_surge_percent=wanted.surge_percent,
        max_constructor_retry_count=CONSTRUCTOR_RETRIES,
        graceful_shutdown_timeout_s=wanted.drain_s,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
    )


def gateway_deployment(settings: Settings) -> serve.Deployment:
    wanted, door = settings.ray, settings.serving
    return serve.deployment(
        serve.ingress()(Gateway),
        name=GATEWAY,
        num_replicas=wanted.gateways,
        max_ongoing_requests=max_running(settings) + door.max_queue + BESIDE_ANSWERS,
        logging_config=QUIET,
        ray_actor_options={"num_cpus": wanted.gateway_cpus},
        max_surge_percent=wanted.surge_percent,
        max_constructor_retry_count=CONSTRUCTOR_RETRIES,
        graceful_shutdown_timeout_s=wanted.drain_s,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
    )


def start(settings: Settings, host: str, port: int, address: str) -> None:
    """Run it until ``stop``, on the cluster at ``address``; ``local`` is a new one of this machine alone.

    Raises ``ConfigError`` where this machine alone is too small, ``NotReadyError`` when Ray cannot be reached or a
    process does not come up.
    """
    app = application(settings)  # before anything runs that would have to be ended
    alone = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address, log_to_driver=False, **alone)
        if alone:
            _check_room(settings, ray.cluster_resources().get("CPU", 0))
        serve.start(http_options=HTTPOptions(host=host, port=port))
        serve.run(app, name=NAME)
    except (RuntimeError, ConnectionError, ValueError) as error:
        raise NotReadyError(f"Ray does not run it: {error}") from error


def stop() -> None:
    """Take the application away; a cluster that was there before goes on."""
    if ray.is_initialized():
        with suppress(RayServeException):  # it had not come so far
            serve.delete(NAME)
        ray.shutdown()


@contextmanager
def deployed_engine(settings: Settings, experts: Iterable[Expert], name: str) -> Iterator[RayEngine]:
    """Replicas of the engine without a gateway, as the application ``name`` of a cluster that runs: to measure."""
    known = {expert.name: expert for expert in experts}
    handle = serve.run(engine_deployment(settings).bind(settings, known, build_engine), name=name, route_prefix=None)
    try:
        described = build_engine(Parts(settings, known, progress=False))
        yield RayEngine(handle, described, settings.ray.silence_s)
    finally:
        serve.delete(name)


def _check_room(settings: Settings, cpus: float) -> None:
    """Ray would wait for more processors for ever; a cluster may get them."""
    wanted = settings.ray
    needed = wanted.gateways * wanted.gateway_cpus + wanted.min_replicas * wanted.replica_cpus
    if needed > cpus:
        raise ConfigError(
            f"Gateways and engines are counted with {needed:g} processors, and this machine has {cpus:g}: lower "
            "ray.gateway_cpus, ray.replica_cpus or ray.min_replicas."
        )


def _derived(settings: Settings) -> Settings:
    """What is derived from the machine elsewhere: a replica has its own processors, a gateway the replicas' room."""
    threads = settings.engine.threads or max(1, int(settings.ray.replica_cpus))
    settings = settings.model_copy(update={"engine": settings.engine.model_copy(update={"threads": threads})})
    serving, replicas = settings.serving, settings.ray.max_replicas
    room: dict[str, int] = {"max_running": serving.max_running or replicas * max_running(settings)}
    if (prefills := max_prefills(settings)) < inf:
        room["max_prefills"] = serving.max_prefills or replicas * int(prefills)
    return settings.model_copy(update={"serving": serving.model_copy(update=room)})
