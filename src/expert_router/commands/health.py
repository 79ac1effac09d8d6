"""``expert-router health``: ask a running server whether it can answer, as a container's health check does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "ask a running server whether it can answer; exit status 1 where it cannot"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--url", help="where the server is (default: this machine, server.port)")
    parser.add_argument("--timeout", type=float, default=4.0, metavar="S", help="seconds to wait (%(default)s)")


def main(args: Namespace) -> int:
    status, reason = _ask(f"{args.url or _here(args.config)}/health/ready", args.timeout)
    print(status if reason is None else f"{status}: {reason}")
    return int(status not in {"ready", "degraded"})


def _here(config: str | None) -> str:
    from expert_router.settings import load_settings

    return f"http://127.0.0.1:{load_settings(config).server.port}"


def _ask(url: str, timeout_s: float) -> tuple[str, str | None]:
    """The server's own word and its reason; "unreachable" where nothing that speaks like it answers."""
    no_proxies = build_opener(ProxyHandler({}))
    try:
        with no_proxies.open(url, timeout=timeout_s) as response:
            body = json.load(response)
    except HTTPError as error:  # 503 has a body as well
        body = _body(error)
    except (OSError, ValueError) as error:
        return "unreachable", f"{url}: {error.reason if isinstance(error, URLError) else error}"
    try:
        return str(body["status"]), body["reason"]
    except (KeyError, TypeError):
        return "unreachable", f"{url}: what answers there is no expert-router"


def _body(error: HTTPError) -> object:
    try:
        return json.load(error)
    except ValueError:
        return None
