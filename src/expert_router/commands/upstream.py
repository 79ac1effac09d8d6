"""``expert-router upstream``: the servers behind ``openai_http``; take one out, put it back, see what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "list the servers behind the engine openai_http, take one out (drain) and put it back (resume)"
TIMEOUT_S = 5.0


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("list", "drain", "resume"),
        help="drain: it gets no new requests, its streams finish; resume: it gets requests again",
    )
    parser.add_argument("address", nargs="?", metavar="ADDRESS", help="as in engine.upstreams")
    parser.add_argument("--url", help="the running expert-router that list asks (default: that of the settings)")


def main(args: Namespace) -> int:
    from expert_router.engines.remote.upstream import checked_address
    from expert_router.serving.remote import draining, upstream_addresses
    from expert_router.settings import load_settings

    settings = load_settings(args.config)
    if settings.engine.name != "openai_http":
        raise ConfigError(f"engine.name is {settings.engine.name}: only openai_http has servers behind it.")
    known = [checked_address(address) for address in upstream_addresses(settings)]
    drained = draining(settings)
    if args.action != "list":
        if not args.address or (address := checked_address(args.address)) not in known:
            raise ConfigError(
                f"Which server? Say: expert-router upstream {args.action} ADDRESS, one of {', '.join(known)}"
            )
        drained.change(**{"add" if args.action == "drain" else "remove": address})
        if args.action == "drain" and drained.addresses().issuperset(known):
            print("No other server is left: every question is refused until one is resumed.")
    running = _running(args.url or f"http://{settings.server.host}:{settings.server.port}")
    for address in known:
        print(_line(address, running.get(address), draining=address in drained.addresses()))
    return 0


def _line(address: str, seen: dict[str, Any] | None, *, draining: bool) -> str:
    if seen is None:
        return f"{address}  {'draining' if draining else 'in use'}; no running expert-router says more of it"
    state = "draining" if draining else seen["state"]
    line = f"{address}  {state}  {seen['outstanding']} running  {seen['failures']} failed"
    line += f"  adapters: {', '.join(seen['adapters']) or 'none'}"
    return f"{line}  {seen['last_error']}" if seen["last_error"] and state != "up" else line


def _running(url: str) -> dict[str, dict[str, Any]]:
    """What a running system says of its servers, by address; nothing when none runs there."""
    import httpx2

    try:
        engine = httpx2.get(f"{url.rstrip('/')}/health/ready", timeout=TIMEOUT_S, trust_env=False).json()["engine"]
        return {each["address"]: each for each in engine["upstreams"]}
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return {}
