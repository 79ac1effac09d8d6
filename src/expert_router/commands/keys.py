"""``expert-router keys``: who may ask a server, and how much; a running server takes part with the next request."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from expert_router.keys import Key

HELP = "make, list, rotate and revoke the keys that a server asks for"
UNITS = {"m": "minutes", "h": "hours", "d": "days"}
LIMITS = ("requests_per_minute", "tokens_per_minute", "max_running")
NO_FILE = (
    "Which file has the keys? Set server.keys, for example EXPERT_ROUTER_SERVER__KEYS=keys.jsonl, for this command and "
    "the server alike; or name it: --file keys.jsonl"
)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("add", "list", "rotate", "revoke"),
        help="add NAME: a new key, shown once; rotate ID: a new secret for it, shown once; revoke ID: no longer counts",
    )
    parser.add_argument("name", nargs="?", metavar="NAME|ID", help="add: whom it is for; rotate, revoke: the key's id")
    parser.add_argument("--file", type=Path, metavar="FILE", help="the keys (default: server.keys of the settings)")
    group = parser.add_argument_group("add")
    group.add_argument("--admin", action="store_true", help="may change the experts, too")
    group.add_argument("--expires", type=duration, metavar="90d", help="counts for so long: 30m, 12h, 90d")
    group.add_argument("--requests-per-minute", type=int, metavar="N", help="in each of the server's processes")
    group.add_argument("--tokens-per-minute", type=int, metavar="N", help="of questions and answers, likewise")
    group.add_argument("--max-running", type=int, metavar="N", help="requests at once, likewise")
    grace = parser.add_argument_group("rotate").add_argument
    grace("--grace", type=duration, default=timedelta(days=1), metavar="1d", help="how long the old secret counts too")
    parser.add_argument("--json", action="store_true", help="print JSON")


def duration(text: str) -> timedelta:
    """``30m``, ``12h`` or ``90d``; raises ``ValueError`` for anything else."""
    found = re.fullmatch(r"(\d{1,5})([mhd])", text)
    if found is None:
        raise ValueError(text)
    return timedelta(**{UNITS[found[2]]: int(found[1])})


def main(args: Namespace) -> int:
    from expert_router.keys import read_keys
    from expert_router.settings import load_settings

    settings = load_settings(args.config)
    path = args.file or (settings.server.keys and settings.resolve(settings.server.keys))
    if path is None:
        raise ConfigError(NO_FILE)
    if args.action == "list":
        _list(list(read_keys(path).values()), as_json=args.json)
        return 0
    if not args.name:
        wanted = "NAME" if args.action == "add" else "ID"
        raise ConfigError(f"Which key? Say: expert-router keys {args.action} {wanted}")
    _change(args, path)
    return 0


def _change(args: Namespace, path: Path) -> None:
    from expert_router.keys import changing, new_key, rotated

    with changing(path) as keys:
        if args.action == "add":
            expires = None if args.expires is None else datetime.now(UTC) + args.expires
            limits = {limit: getattr(args, limit) for limit in LIMITS}
            key, secret = new_key(args.name, scope="admin" if args.admin else "user", expires=expires, **limits)
        elif args.name not in keys:
            raise ConfigError(f"{path} has no key {args.name!r}. Known: {', '.join(keys) or 'none'}.")
        elif args.action == "rotate":
            key, secret = rotated(keys[args.name], args.grace)
        else:
            key, secret = keys[args.name], ""
        if args.action == "revoke":
            del keys[key.id]
        else:
            keys[key.id] = key
    _show(args, key, secret)


def _show(args: Namespace, key: Key, secret: str) -> None:
    if args.json:
        print(json.dumps(_described(key) | ({"key": secret} if secret else {})))
        return
    if not secret:
        print(f"The key {key.id} ({key.name}) counts no more.")
        return
    print(secret)  # alone on standard output, for a program that takes it
    before = f" The old one counts until {key.previous_until:%Y-%m-%d %H:%M} UTC." if key.previous_until else ""
    print(f"The key {key.id} ({key.name}): keep it, it is not shown again.{before}", file=sys.stderr)


def _list(keys: list[Key], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([_described(key) for key in keys]))
        return
    now = datetime.now(UTC)
    for key in keys:
        limits = [f"{getattr(key, limit)} {limit.replace('_', ' ')}" for limit in LIMITS if getattr(key, limit)]
        ends = f"{'expired' if key.expired(now) else 'until'} {key.expires:%Y-%m-%d}" if key.expires else "no end"
        print(f"{key.id:<10}{key.name:<20}{key.scope:<7}{key.created:%Y-%m-%d}  {ends:<19}{', '.join(limits)}".rstrip())


def _described(key: Key) -> dict[str, Any]:
    """Without the hashes, which are nobody's business."""
    return key.model_dump(mode="json", exclude_none=True, exclude={"hash", "previous_hash"})
