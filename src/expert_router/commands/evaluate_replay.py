"""``expert-router evaluate replay``: another router on the questions of a decision log."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from expert_router.commands.measuring import machine, router_and_policy
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence

    from expert_router.decision_log import LoggedDecision
    from expert_router.evaluation.replay import Judged, Replay
    from expert_router.ports import Router
    from expert_router.settings import Settings
    from expert_router.types import Decision

CHANGES = 20
LONGEST_SHOWN = 80


def add_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("replay")
    group.add_argument("--log", type=Path, metavar="FILE", help="the decision log (default: decision_log.path)")
    group.add_argument("--router", metavar="NAME", help="which router (default: the configured one)")
    group.add_argument("--router-artifact", type=Path, metavar="DIR", help="its artifact (default: router.artifact)")
    group.add_argument(
        "--changes", type=int, default=CHANGES, metavar="N", help=f"list the first N changes (default: {CHANGES})"
    )


def replay_log(args: Namespace, settings: Settings) -> int:
    """Raises ``ConfigError`` or ``DataError`` when there is no log, or nothing in it."""
    from tqdm import tqdm

    from expert_router.decision_log import read_decisions
    from expert_router.evaluation.replay import replay

    if args.changes < 0:
        raise ConfigError(f"--changes takes a number from 0 on, not {args.changes}.")
    path = args.log or (settings.decision_log.path and settings.resolve(settings.decision_log.path))
    if path is None:
        raise ConfigError("Name the decision log, --log FILE: the settings name none (decision_log.path).")
    logged = read_decisions(path)
    if args.router_artifact is not None:
        chosen = settings.router.model_copy(update={"artifact": args.router_artifact.absolute()})
        settings = settings.model_copy(update={"router": chosen})
    router, policy = router_and_policy(settings, args.router)
    with tqdm(total=len(logged), desc="replay", unit="question", disable=None) as bar:

        def decide(question: str, history: Sequence[str]) -> Decision:
            bar.update()
            return policy.decide(router.score(question, history), router.name)

        report = replay(logged, decide)
    if args.json:
        about = {"machine": machine(), "log": str(path), "router": {"name": router.name, "version": router.version}}
        print(json.dumps({**about, **asdict(report)}, indent=2, ensure_ascii=False))
    else:
        _print_report(report, path, logged, router, args.changes)
    return 0


def _print_report(report: Replay, path: Path, logged: list[LoggedDecision], router: Router, changes: int) -> None:
    from expert_router.evaluation.report import markdown_table, with_interval

    versions = sorted({_named(each.router, each.router_version) for each in logged if each.forced is None})
    left_out = f" and {report.named} that the request named, left out here" if report.named else ""
    print(f"{path}: {report.same.n} decisions of {', '.join(versions)}{left_out}.")
    print(f"Replayed with {_named(router.name, router.version)}, each with the user's turns before it.\n")
    rows = [(kind, with_interval(same), str(same.n)) for kind, same in {**report.kinds, "all": report.same}.items()]
    print(markdown_table(("decided then", "the same now", "decisions"), rows))
    shown = report.changed[:changes]
    if shown:
        print(f"\nThe first {len(shown)} of {len(report.changed)} that changed:\n")
        table = [(_cell(each.question), each.then, each.now, _verdict(each.right)) for each in shown]
        print(markdown_table(("question", "then", "now", "right now"), table))
    print(f"\n{_judgement(report.judged)}")


def _judgement(judged: Judged) -> str:
    from expert_router.evaluation.report import in_points, with_interval

    left = f" {judged.open} more are known to have been wrong and are decided otherwise now." if judged.open else ""
    if judged.now is None:
        return f"Feedback tells of none of them whether the router is right now.{left}"
    return (
        f"By people's feedback on {judged.now.n}: right then {with_interval(judged.logged)}, right now "
        f"{with_interval(judged.now)}, a difference of {in_points(judged.difference)} points.{left}"
    )


def _named(router: str, version: str) -> str:
    return router if version == router else f"{router} {version}"


def _cell(question: str) -> str:
    text = " ".join(question.split()).replace("|", "\\|")
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"


def _verdict(right: bool | None) -> str:
    return {True: "yes", False: "no", None: ""}[right]
