"""``expert-router weights``: bring, check or list the files of models.lock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence

    from expert_router.settings import Settings
    from expert_router.weights import LockedModel

HELP = "bring, check or list the weight files of models.lock"

_ENGINES_WITHOUT_WEIGHTS = {"echo", "openai_http"}
_ROUTERS_WITH_ENCODER = {"embedding"}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=("fetch", "verify", "list"),
        default="fetch",
        help="fetch: bring what is missing (default); verify: hash what is there again; list: say what is there",
    )
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="a name in models.lock; without one, fetch takes what the settings need, verify and list take all",
    )


def main(args: Namespace) -> int:
    from expert_router.settings import load_settings
    from expert_router.weights import load_lock

    settings = load_settings(getattr(args, "config", None))
    lock = load_lock(settings.resolve(settings.paths.models_lock))
    if args.action == "fetch":
        return _fetch(_chosen(lock, args.models or needed_models(settings)), settings)
    required = set(args.models or needed_models(settings))
    return _report(_chosen(lock, args.models or list(lock)), settings, required, rehash=args.action == "verify")


def needed_models(settings: Settings) -> list[str]:
    """The models that these settings start with: the engine's base and the router's encoder, where they have one."""
    base = [] if settings.engine.name in _ENGINES_WITHOUT_WEIGHTS else [settings.engine.base_model]
    return base + ([settings.router.encoder] if settings.router.name in _ROUTERS_WITH_ENCODER else [])


def _chosen(lock: dict[str, LockedModel], names: Sequence[str]) -> list[LockedModel]:
    if unknown := sorted(set(names) - set(lock)):
        raise ConfigError(f"models.lock has no model {', '.join(unknown)}. Known: {', '.join(lock)}.")
    return [lock[name] for name in dict.fromkeys(names)]


def _fetch(models: list[LockedModel], settings: Settings) -> int:
    from expert_router.weights import ensure_model

    start = time.perf_counter()
    cache = settings.resolve(settings.paths.cache)
    for model in models:
        for path in ensure_model(model, cache, token=settings.hf_token, progress=True).values():
            print(path)
    print(f"Ready after {time.perf_counter() - start:.1f} s.")
    return 0


def _report(models: list[LockedModel], settings: Settings, required: set[str], *, rehash: bool) -> int:
    """One line a file. 1 when ``rehash`` finds a file altered, or one missing that is required."""
    from expert_router.weights import verify_model

    failed = False
    for model in models:
        print(f"{model.name}  {model.size / 1e6:,.1f} MB")
        for check in verify_model(model, settings.resolve(settings.paths.cache), trust_stamps=not rehash):
            print(f"  {check.state:<8}{check.file.size / 1e6:>8,.1f} MB  {check.file.licence}  {check.path}")
            failed |= check.state == "altered" or (check.state == "missing" and model.name in required)
    return int(failed and rehash)
