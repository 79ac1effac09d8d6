"""The command line: one verb a file, imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import TYPE_CHECKING

from expert_router.errors import ExpertRouterError

if TYPE_CHECKING:
    from collections.abc import Sequence

VERBS = {
    "serve": "start the API and the chat page",
    "top": "show what a running server does now, by expert",
    "ask": "ask a question and stream the answer",
    "chat": "talk in the terminal",
    "route": "say which expert a question would go to, and why",
    "explain": "say why: the words that mattered, and the examples most like it",
    "expert": "list, show, add, remove and roll back experts, on a running server too",
    "upstream": "list the servers behind the engine openai_http, take one out and put it back",
    "keys": "make, list, rotate and revoke the keys that a server asks for",
    "train": "fit the router or its encoder, train an expert, and check what is served",
    "prepare": "validate, clean and split the data",
    "weights": "bring, check or list the weight files of models.lock",
    "chat-page": "start the chat page alone, against a running server",
    "health": "ask a running server whether it can answer",
    "bench": "measure routers and engines",
    "benchmark": "measure the router's encoder on public intent data sets",
    "evaluate": "measure the experts' answers against the base model",
    "optimize": "measure smaller and faster variants of the experts' models, and install one",
}

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 for an error that was explained, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="expert-router",
        description="Several specialised LLM experts behind one endpoint.",
        epilog="expert-router COMMAND --help says more.",
    )
    parser.add_argument(
        "--config", metavar="NAME|FILE", help="a profile of configs/ (default, tiny, echo) or a TOML file"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for verb, text in VERBS.items():
        commands.add_parser(verb, help=text, add_help=False)
    known, rest = parser.parse_known_args(arguments)
    module = importlib.import_module(f"expert_router.commands.{known.command.replace('-', '_')}")
    verb_parser = argparse.ArgumentParser(prog=f"expert-router {known.command}", description=module.HELP)
    verb_parser.add_argument(
        "--config", "--profile", metavar="NAME|FILE", default=known.config, help="a profile of configs/ or a TOML file"
    )
    module.add_arguments(verb_parser)
    try:
        status = int(module.main(verb_parser.parse_args(rest)))
        sys.stdout.flush()  # here, where a reader that left is no error, not when Python exits
    except ExpertRouterError as error:
        print(f"expert-router: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `expert-router route ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def main() -> None:
    sys.exit(run())
