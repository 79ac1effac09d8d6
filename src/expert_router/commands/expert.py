"""``expert-router expert``: list, show, add, remove and roll back experts, here or on a running server."""

from __future__ import annotations

import itertools
import json
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expert_router.commands import expert_train
from expert_router.errors import ConfigError, ExpertRouterError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterable

    from expert_router.live.experts import Change, LiveExperts
    from expert_router.live.proposal import Proposal

HELP = "list, show, add, remove and roll back experts; a running server takes part at once"
TIMEOUT_S = 60.0
NOT_TRAINED = 1


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("list", "show", "add", "remove", "rollback", "versions"),
        help="list or show who can answer; add or remove one; rollback to the version before, or to --to; versions: "
        "what was changed when",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="lower-case letters, digits and _")
    group = parser.add_argument_group("add")
    group.add_argument(
        "--examples",
        type=Path,
        metavar="FILE",
        help="questions it should answer: a CSV with a column question (and perhaps answer and key), or a text with "
        "one a line; twenty are enough",
    )
    group.add_argument("--title", default="", help="what people read (default: made of the name)")
    group.add_argument("--description", default="", help="its field in a sentence; enough without examples, but worse")
    group.add_argument("--instructions", default="", help="what the model is told to be (default: made of the title)")
    group.add_argument("--knowledge", type=Path, metavar="DIR", help="Markdown, text or PDF files that it reads")
    group.add_argument("--replace", action="store_true", help="in place of the expert of this name")
    expert_train.add_arguments(parser)
    parser.add_argument("--to", type=int, metavar="VERSION", help="rollback: which; 0 is as shipped")
    parser.add_argument("--url", help="a running server's address, which then changes; needs --admin-key")
    parser.add_argument(
        "--admin-key", metavar="KEY", help="default: EXPERT_ROUTER_KEY, or server.admin_key of the settings"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: Namespace) -> int:
    if args.action in {"show", "add", "remove"} and not args.name:
        raise ConfigError(f"Which expert? Say: expert-router expert {args.action} NAME")
    if args.train and (args.action != "add" or args.url):
        raise ConfigError("--train is for: expert-router expert add NAME, where the catalogue is; leave --url out.")
    if args.url:
        return _show_remote(args, _remote(args))
    from expert_router.live.experts import LiveExperts
    from expert_router.serving.parts import build_parts
    from expert_router.settings import load_settings

    live = LiveExperts(build_parts(load_settings(args.config), progress=True))
    match args.action:
        case "add":
            return _add(args, live)
        case "remove":
            return _show_change(args, live.remove(args.name))
        case "rollback":
            return _show_change(args, live.rollback(args.to))
        case "versions":
            return _show_versions(args, live)
        case _:
            return _show_experts(args, live)


def _add(args: Namespace, live: LiveExperts) -> int:
    """1 when the expert was added and could not be trained."""
    proposal = _proposal(args)
    if not args.train:
        return _show_change(args, live.add(proposal, replacing=args.replace))
    expert_train.require_trainable(args, live.settings, proposal)
    change = live.add(proposal, replacing=args.replace)
    if not args.json:
        _show_change(args, change)
    try:
        with redirect_stdout(sys.stderr) if args.json else nullcontext():
            trained = expert_train.train_added(args, live, change.version)
    except ExpertRouterError as error:
        refused = f"{args.name} is added and answers without an adapter. {error}"
        if args.json:
            _show_change(args, replace(change, warnings=(*change.warnings, refused)))
        print(f"expert-router: {refused}", file=sys.stderr)
        return NOT_TRAINED
    return _show_change(args, replace(trained, warnings=change.warnings if args.json else ()))


def _proposal(args: Namespace) -> Proposal:
    from expert_router.live.proposal import Proposal, read_examples, read_knowledge

    return Proposal(
        args.name,
        args.title,
        args.description,
        args.instructions,
        read_examples(args.examples) if args.examples else (),
        read_knowledge(args.knowledge) if args.knowledge else {},
    )


def _show_change(args: Namespace, change: Change) -> int:
    version = change.version
    if args.json:
        print(json.dumps({"version": version.number, "change": version.change, "warnings": change.warnings}))
        return 0
    _print_change(version.change, version.number, change.warnings)
    return 0


def _print_change(change: str, number: int, warnings: Iterable[str]) -> None:
    print(f"Version {number} counts now: {change}. Servers of this catalogue follow within a second.")
    for warning in warnings:
        print(f"Warning: {warning}")


def _show_versions(args: Namespace, live: LiveExperts) -> int:
    current, versions = live.catalogue.current_number(), live.catalogue.versions()
    if args.json:
        print(
            json.dumps(
                [{"version": v.number, "change": v.change, "made": v.made, "parent": v.parent} for v in versions]
            )
        )
        return 0
    for version in versions:
        mark = "*" if version.number == current else " "
        print(f"{mark} {version.number:>3}  {version.made:<25}  {version.change}")
    return 0


def _show_experts(args: Namespace, live: LiveExperts) -> int:
    experts, version = live.experts(), live.catalogue.current()
    if args.action == "show":
        if args.name not in experts:
            raise ConfigError(f"There is no expert {args.name!r}. Known: {', '.join(experts)}.")
        experts = {args.name: experts[args.name]}
    described = [
        {
            "name": expert.name,
            "title": expert.title,
            "description": expert.description,
            "origin": "added" if expert.name in version.added else "shipped",
            "knowledge": str(expert.knowledge) if expert.knowledge else None,
            "adapters": {base: adapter.sha256 for base, adapter in expert.adapters.items()},
            "examples": list(expert.examples),
        }
        for expert in experts.values()
    ]
    if args.json:
        print(json.dumps(described if args.action == "list" else described[0], ensure_ascii=False))
    elif args.action == "list":
        for each in described:
            print(f"{each['name']:<20}{each['origin']:<10}{each['title']}: {each['description']}")
        print(f"Version {version.number} ({version.change}).")
    else:
        for key, value in described[0].items():
            for line, label in zip(_lines(value), itertools.chain([key], itertools.repeat("")), strict=False):
                print(f"{label:<14}{line}".rstrip())
    return 0


def _remote(args: Namespace) -> Any:
    """What the server answers. Raises ``ConfigError`` with its words when it refuses."""
    import httpx2

    from expert_router.settings import load_settings

    settings = load_settings(args.config)
    key = args.admin_key or settings.key or settings.server.admin_key
    headers = {"authorization": f"Bearer {key}"} if key else {}
    method, path, body = _request(args)
    try:
        with httpx2.Client(base_url=args.url, timeout=TIMEOUT_S, trust_env=False) as http:
            response = http.request(method, f"/v1/experts{path}", json=body, headers=headers)
        answer = response.json()
        refused = answer["error"]["message"] if response.is_error else None
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise ConfigError(f"{args.url} cannot be asked: {error}") from error
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{args.url} answers {response.status_code}, and not as expert-router does.") from error
    if refused:
        raise ConfigError(f"{args.url}: {refused}")
    return answer


def _request(args: Namespace) -> tuple[str, str, dict[str, Any] | None]:
    match args.action:
        case "list":
            return "GET", "", None
        case "show":
            return "GET", f"/{args.name}", None
        case "remove":
            return "DELETE", f"/{args.name}", None
        case "rollback":
            return "POST", "/rollback", {"version": args.to}
        case "add":
            return "POST", "", _body(args)
        case _:
            raise ConfigError("Versions are read from the catalogue's folder: leave --url out.")


def _body(args: Namespace) -> dict[str, Any]:
    from expert_router.knowledge.corpus import read_corpus

    proposal = _proposal(args)
    passages = read_corpus(args.knowledge) if args.knowledge else []
    return {
        "name": proposal.name,
        "title": proposal.title,
        "description": proposal.description,
        "instructions": proposal.instructions,
        "examples": [{"question": e.question, "answer": e.answer, "key": e.key} for e in proposal.examples],
        "knowledge": [{"title": passage.title, "text": passage.text} for passage in passages],
        "replace": args.replace,
    }


def _lines(value: object) -> list[str]:
    """A described value for people: what there is several of has a line each."""
    match value:
        case dict():
            return [f"{name}: {each}" for name, each in value.items()] or ["none"]
        case list():
            return list(map(str, value)) or ["none"]
        case _:
            return ["none" if value is None else str(value)]


def _show_remote(args: Namespace, answer: Any) -> int:
    if args.json or args.action == "show":
        print(json.dumps(answer, ensure_ascii=False, indent=None if args.json else 2))
    elif args.action == "list":
        for each in answer["experts"]:
            print(f"{each['name']:<20}{each['title']}: {each['description']}")
        print(f"Version {answer['version']}.")
    else:
        _print_change(answer["change"], answer["version"], answer["warnings"])
    return 0
