"""``expert-router bench soak``: mixed load for half an hour, and whether the server holds more than before."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expert_router.commands.measuring import TEST_SPLIT, machine, new_folder
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Iterator

    from expert_router.evaluation.soak import Footprint, Soak
    from expert_router.settings import Settings

HELP = "mixed load for half an hour: memory flat, nothing left behind"
MIX = "sleep=0.35,cars=0.35,other=0.2,several topics=0.1"
SILENCE_S = 120.0
START_WITHIN_S = 120.0
MIB = 1024**2
LEAKS = 1
"""The exit status where it did not pass."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=30.0, metavar="N", help="of measured load (default: 30)")
    parser.add_argument("--url", help="a server on this machine (default: one of its own, with these settings)")
    parser.add_argument("--admin-key", metavar="KEY", help="of that server: experts come and go, too")
    parser.add_argument("--clients", type=int, default=8, metavar="N", help="at once (default: 8)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--output", type=Path, metavar="DIR", help="a new folder (default: below runs/)")


def run(args: Namespace, settings: Settings) -> int:
    from expert_router.data.labelled import read_labelled
    from expert_router.evaluation.mix import draw, read_mix

    if args.minutes <= 0 or args.clients < 1:
        raise ConfigError("--minutes takes a number above 0, --clients one from 1 on.")
    examples = read_labelled(settings.resolve(settings.paths.data) / TEST_SPLIT)
    questions = draw(examples, read_mix(MIX, examples), args.seed, zipf=False)
    folder = new_folder(args.output, settings, "soak")
    began = time.strftime("%Y-%m-%d %H:%M %Z")
    with _server(args) as (url, admin_key):
        result = asyncio.run(_measure(args, url, admin_key, questions))
    about = {
        "when": began,
        "server": f"{settings.engine.name}, {settings.engine.base_model}" if args.url is None else args.url,
        "load": f"{args.clients} clients, {args.minutes:g} minutes, seed {args.seed}",
        "warm-up": f"{result.warm_up_s:.0f} s",
        "machine": machine(),
    }
    complaints = result.complaints()
    _report(folder, about, result, complaints, as_json=args.json)
    return LEAKS if complaints else 0


async def _measure(args: Namespace, url: str, admin_key: str | None, questions: Iterator[Any]) -> Soak:
    import httpx2
    from tqdm import tqdm

    from expert_router.evaluation.soak import Crowd, soak

    def client() -> httpx2.AsyncClient:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        return httpx2.AsyncClient(base_url=url, timeout=SILENCE_S, limits=limits, trust_env=False)

    seconds = args.minutes * 60
    async with client() as waiting:
        await _ready(waiting)
    with tqdm(total=round(seconds), unit="s", disable=None) as bar:
        crowd = Crowd(client, questions, args.clients, args.seed, admin_key)
        return await soak(crowd, seconds=seconds, sampled=_progress(bar, seconds))


def _progress(bar: Any, seconds: float) -> Callable[[str, Footprint], None]:
    """Shows each sample on the bar or, where nobody watches a terminal, a tenth of the time apart as a line."""
    told: set[tuple[str, int]] = set()

    def sampled(phase: str, sample: Footprint) -> None:
        memory = ", ".join(f"{each / MIB:.0f}" for each in sample.by_process.values())
        what = f"{sample.requests} requests, {memory} MiB, {sample.sockets} sockets, {sample.tasks} tasks"
        if not bar.disable:
            bar.n = round(sample.s)
            bar.set_description(phase, refresh=False)
            bar.set_postfix_str(what)
        elif (tenth := (phase, int(10 * sample.s / seconds))) not in told:
            told.add(tenth)
            print(f"{phase}, {sample.s:.0f} s: {what}", file=sys.stderr)

    return sampled


async def _ready(client: Any) -> None:
    """Wait for the server and its models. Raises ``ConfigError`` when they do not come."""
    import httpx2

    why, deadline = "no answer", time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline:
        try:
            said = (await client.get("/health/ready")).json()
            if said["status"] in {"ready", "degraded"} and "process" in said:
                return
            why = str(said.get("reason") or said["status"])
        except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
            why = str(error) or type(error).__name__
        await asyncio.sleep(0.5)
    raise ConfigError(f"No expert-router is ready at {client.base_url} ({why}): start one, or leave --url out.")


@contextmanager
def _server(args: Namespace) -> Iterator[tuple[str, str | None]]:
    """The named one, or one with these settings, whose experts are versions in a folder of its own."""
    if args.url is not None:
        yield args.url.rstrip("/").removesuffix("/v1"), args.admin_key
        return
    from expert_router.evaluation.gateway_processes import as_configured

    admin_key = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        variables = {"SERVER__ADMIN_KEY": admin_key, "PATHS__CATALOGUE": str(Path(folder) / "catalogue")}
        with as_configured(getattr(args, "config", None), variables, Path(folder)) as server:
            yield f"http://127.0.0.1:{server.port}", admin_key


def _report(folder: Path, about: dict[str, str], result: Soak, complaints: list[str], *, as_json: bool) -> None:
    from expert_router.evaluation.report import write_both
    from expert_router.evaluation.soak_report import soak_as_markdown

    growth = [{**asdict(each), "verdict": each.verdict} for each in result.growths()]
    content = {"about": about, "passed": not complaints, "complaints": complaints, "growth": growth}
    pictures = {}
    try:
        from expert_router.evaluation.pictures import draw_soak
    except ImportError as error:
        print(f"No picture ({error}): pip install 'expert-router[evaluate]'", file=sys.stderr)
    else:
        pictures = draw_soak(folder, result)
    write_both(folder, soak_as_markdown(about, result, complaints, pictures), {**content, **asdict(result)})
    summary = {**content, "requests": result.requests, "ends": result.ends}
    print(json.dumps(summary, indent=2) if as_json else soak_as_markdown(about, result, complaints, {}))
    print(f"Saved in {folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}.", file=sys.stderr)
