"""``expert-router bench``: the tables of docs/benchmarks.md, measured on this machine; one measurement a file.

Each has ``HELP``, ``add_arguments`` for options of its own, and ``run``.
"""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser
from typing import TYPE_CHECKING

from expert_router.commands.bench import (
    additions,
    baseline,
    cache,
    dialogues,
    engine,
    gateway,
    injection,
    leaving,
    load,
    parts,
    placement,
    routers,
    same_answer,
    soak,
    stability,
)

if TYPE_CHECKING:
    from argparse import Namespace

HELP = "measure routers and engines on this machine"
MEASUREMENTS = {
    "routers": routers,
    "dialogues": dialogues,
    "stability": stability,
    "parts": parts,
    "additions": additions,
    "engine": engine,
    "load": load,
    "leaving": leaving,
    "soak": soak,
    "cache": cache,
    "same-answer": same_answer,
    "injection": injection,
    "gateway": gateway,
    "baseline": baseline,
    "placement": placement,
}


def add_arguments(parser: ArgumentParser) -> None:
    common = ArgumentParser(add_help=False)
    common.add_argument("--config", "--profile", metavar="NAME|FILE", default=SUPPRESS, help="as for every command")
    common.add_argument("--json", action="store_true", help="print JSON instead of a table")
    kinds = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, module in MEASUREMENTS.items():
        module.add_arguments(kinds.add_parser(name, help=module.HELP, description=module.HELP, parents=[common]))


def main(args: Namespace) -> int:
    from expert_router.settings import load_settings

    return int(MEASUREMENTS[args.what].run(args, load_settings(args.config)))
