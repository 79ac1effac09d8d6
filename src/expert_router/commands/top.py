"""``expert-router top``: what a running server does now, by expert, read from its ``/metrics`` alone."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING

from expert_router.errors import NotReadyError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    import httpx2

    from expert_router.telemetry.reading import Between, Scrape

HELP = "show what a running server does now, by expert"
GIVEN_AGAIN = ("hit", "shared", "similar")
ON, OFF, HOME = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H\x1b[J"
"""A screen of its own without a cursor; back to the one before; an empty one."""
HEADING = (
    "expert",
    "adapter",
    "ready",
    "answers/s",
    "first p50",
    "first p95",
    "token p95",
    "tokens/s",
    "again",
    "errors/s",
)
TIMEOUT_S = 5.0


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--url", help="the server (default: this machine, server.port)")
    parser.add_argument("--key", help="what the server asks for (default: EXPERT_ROUTER_KEY)")
    parser.add_argument(
        "--interval", type=_seconds, default=2.0, metavar="S", help="seconds that each view is about (%(default)g)"
    )
    parser.add_argument("--once", action="store_true", help="one view, for scripts, instead of one after the other")


def main(args: Namespace) -> int:
    import httpx2

    from expert_router.settings import load_settings
    from expert_router.telemetry.reading import Between

    settings = load_settings(args.config)
    url = (args.url or f"http://127.0.0.1:{settings.server.port}").rstrip("/")
    key, alone = args.key or settings.key, not args.once and sys.stdout.isatty()
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx2.Client(timeout=TIMEOUT_S, trust_env=False, headers=headers) as client:
        before, asked = _scrape(client, url), time.monotonic()
        print(ON if alone else "", end="", flush=True)
        try:
            while True:
                time.sleep(args.interval)
                after, now = _scrape(client, url), time.monotonic()
                _show(view(Between(before, after, now - asked), url), alone=alone)
                if args.once:
                    return 0
                before, asked = after, now
        finally:
            print(OFF if alone else "", end="", flush=True)


def view(between: Between, url: str) -> str:
    """The server in two lines, then a line for each expert."""
    experts = sorted({(each["expert"], each["adapter"]) for each, _ in between.after.of("expert_info", {})})
    rows = [HEADING, *(_row(between, name, adapter) for name, adapter in experts)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"expert-router  {url}  {time.strftime('%H:%M:%S')}", _whole(between), "", *lines])


def _whole(between: Between) -> str:
    numbers = {
        "running": f"{between.after.sum('num_requests_running'):.0f}",
        "waiting": f"{between.after.sum('num_requests_waiting'):.0f}",
        "answers/s": f"{between.rate('requests_total'):.1f}",
        "tokens/s": f"{between.rate('generation_tokens_total'):.1f}",
        "first p50": _time(between.quantile(0.5, "time_to_first_token_seconds")),
        "first p95": _time(between.quantile(0.95, "time_to_first_token_seconds")),
        "again": _again(between),
        "errors/s": f"{between.rate('errors_total'):.1f}",
    }
    return "  ".join(f"{name} {number}" for name, number in numbers.items())


def _row(between: Between, expert: str, adapter: str) -> tuple[str, ...]:
    def quantile(share: float, name: str) -> str:
        return _time(between.quantile(share, name, expert=expert, adapter=adapter))

    ready = [value for _, value in between.after.of("expert_ready", {"expert": expert})]
    return (
        expert,
        adapter or "-",
        "yes" if all(ready) else "no",
        f"{between.rate('requests_total', expert=expert, adapter=adapter):.1f}",
        quantile(0.5, "time_to_first_token_seconds"),
        quantile(0.95, "time_to_first_token_seconds"),
        quantile(0.95, "inter_token_latency_seconds"),
        f"{between.rate('generation_tokens_total', expert=expert, adapter=adapter):.1f}",
        _again(between, expert=expert),
        f"{between.rate('errors_total', expert=expert):.1f}",
    )


def _again(between: Between, **labels: str) -> str:
    """The share of whole answers that were not made anew."""
    name = "cache_requests_total"
    answers = between.grown(name, **labels)
    again = sum(between.grown(name, result=result, **labels) for result in GIVEN_AGAIN)
    return f"{again / answers:.0%}" if answers else "-"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def _scrape(client: httpx2.Client, url: str) -> Scrape:
    import httpx2

    from expert_router.telemetry.reading import Scrape

    try:
        response = client.get(f"{url}/metrics")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise NotReadyError(
            f"Nothing answers at {url} ({error}). Start a server (expert-router serve), or name another: --url"
        ) from error
    if response.status_code == httpx2.codes.UNAUTHORIZED:
        raise NotReadyError(f"The server at {url} asks for a key that it knows: --key, or EXPERT_ROUTER_KEY")
    if response.status_code != httpx2.codes.OK or "expert_router_num_requests_running" not in response.text:
        raise NotReadyError(
            f"What answers at {url} is no expert-router that tells metrics: GET /metrics is HTTP "
            f"{response.status_code}. Name another: --url"
        )
    return Scrape(response.text)


def _show(text: str, *, alone: bool) -> None:
    if not alone:
        print(text, flush=True)
        return
    columns, lines = shutil.get_terminal_size()
    cut = [line[:columns] for line in text.splitlines()[: lines - 1]]
    print(HOME + "\n".join(cut), end="", flush=True)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds > 0:
        raise ValueError
    return seconds
