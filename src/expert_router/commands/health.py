"""``expert-router health``: ask a running server whether it can answer, as a container's health check does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.request import HTTPSHandler, ProxyHandler, build_opener

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from pathlib import Path

HELP = "ask a running server whether it can answer; exit status 1 where it cannot"
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound
"""Addresses that are listened on, and those to ask there."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--url", help="where the server is (default: by server.host, port and tls_cert)")
    parser.add_argument("--timeout", type=float, default=4.0, metavar="S", help="seconds to wait (%(default)s)")


def main(args: Namespace) -> int:
    url, certificate = (args.url, None) if args.url else _here(args.config)
    status, reason = _ask(f"{url}/health/ready", args.timeout, certificate)
    print(status if reason is None else f"{status}: {reason}")
    return int(status not in {"ready", "degraded"})


def _here(config: str | None) -> tuple[str, Path | None]:
    """Where the server of these settings is for this machine, and its certificate where it has one."""
    from expert_router.settings import load_settings

    settings = load_settings(config)
    server = settings.server
    host = EVERYWHERE.get(server.host, server.host)
    address = f"[{host}]:{server.port}" if ":" in host else f"{host}:{server.port}"
    if server.tls_cert is None:
        return f"http://{address}", None
    return f"https://{address}", settings.resolve(server.tls_cert)


def _ask(url: str, timeout_s: float, certificate: Path | None) -> tuple[str, str | None]:
    """The server's own word and its reason; "unreachable" where nothing that speaks like it answers."""
    opener = build_opener(ProxyHandler({}))
    try:
        if certificate is not None:
            from expert_router.ui.client import trusting

            opener = build_opener(ProxyHandler({}), HTTPSHandler(context=trusting(certificate)))
        with opener.open(url, timeout=timeout_s) as response:
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
