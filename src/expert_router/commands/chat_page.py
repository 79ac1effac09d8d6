"""``expert-router chat-page``: the chat page alone, for a backend that runs elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

HELP = "serve the chat page alone, for a backend that runs elsewhere"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", default="http://127.0.0.1:8000", metavar="URL", help="the API (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="the port to listen on (%(default)s)")


def main(args: argparse.Namespace) -> int:
    import uvicorn
    from fastapi import FastAPI

    from expert_router.ui.chat import mount

    app = mount(FastAPI(openapi_url=None), args.backend, "/")
    print(f"The chat page is on http://{args.host}:{args.port} and asks {args.backend}. Ctrl-C ends it.", flush=True)
    # An open page holds a connection for as long as it is open: without a limit, Ctrl-C would wait for it.
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning", timeout_graceful_shutdown=1)
    return 0
