"""``expert-router chat-page``: the chat page alone, for a backend that runs elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

HELP = "serve the chat page alone, for a backend that runs elsewhere"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", default="http://127.0.0.1:8000", metavar="URL", help="the API (%(default)s)")
    parser.add_argument(
        "--key", help="what the backend asks for, for visitors who bring none (default: EXPERT_ROUTER_KEY)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="the port to listen on (%(default)s)")
    parser.add_argument("--insecure", action="store_true", help="listen beyond this machine without keys")


def main(args: argparse.Namespace) -> int:
    """Where there are keys (server.keys) visitors need one, and it asks the backend with theirs."""
    from fastapi import FastAPI

    from expert_router.api.app import guard, load_keyring
    from expert_router.commands.exposure import require_closed
    from expert_router.commands.serve import BACKLOG, listen, reachable, run_app
    from expert_router.observability import configure_logging
    from expert_router.settings import load_settings
    from expert_router.ui.chat import mount

    settings = load_settings(args.config)
    configure_logging("warning")
    listener = listen(args.host, args.port)
    require_closed(listener, settings, insecure=args.insecure)
    app = FastAPI(openapi_url=None)
    guard(app, settings, load_keyring(settings))
    mount(app, args.backend, "/", key=args.key or settings.key)
    listener.listen(BACKLOG)
    print(f"The chat page is on {reachable(listener, settings)} and asks {args.backend}. Ctrl-C ends it.", flush=True)
    # An open page holds a connection for as long as it is open: without a limit, Ctrl-C would wait for it.
    run_app(app, settings, listener, grace_s=1)
    return 0
