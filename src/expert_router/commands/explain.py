"""``expert-router explain``: why a question goes to an expert. Loads no language model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from expert_router.errors import InvalidRequestError
from expert_router.types import GENERAL

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterable

    from expert_router.types import Explanation

HELP = "say why a question goes to an expert: the words that mattered, and the examples most like it"
BAR_WIDTH = 30
FULL_BAR = 1.0
"""The least change of log-odds that fills a bar, where no word changes them more."""
SPEAKS_FOR, SPEAKS_AGAINST, NEEDED_FROM = "█", "░", "|"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("question", nargs="*", help="the question")
    parser.add_argument(
        "--history", action="append", default=[], metavar="TEXT", help="an earlier user turn; repeatable"
    )
    parser.add_argument("-k", type=int, default=5, metavar="N", help="how many examples to show (default: 5)")
    parser.add_argument("--router", metavar="NAME", help="another router than the configured one")
    parser.add_argument("--json", action="store_true", help="print one JSON object, as POST /v1/explain gives it")


def main(args: Namespace) -> int:
    import expert_router
    from expert_router.serving.objects import explanation_object

    query = " ".join(args.question).strip()
    if not query or args.k < 0:
        raise InvalidRequestError('Give a question, and -k from 0 on: expert-router explain "What is REM sleep?" -k 5')
    with expert_router.open(args.config, router=args.router) as system:
        explanation = system.explain(query, args.history, nearest=args.k)
    if args.json:
        print(json.dumps(explanation_object(explanation), ensure_ascii=False))
    else:
        print(*_decided(explanation), *_scored(explanation), *_weighed(explanation), *_compared(explanation), sep="\n")
    return 0


def _decided(explanation: Explanation) -> Iterable[str]:
    decision = explanation.decision
    yield f"{decision.kind}: {', '.join(decision.experts) or 'no expert'}"
    yield decision.reason
    if explanation.history:
        yield "It goes on with what was said before, and is read with it."


def _scored(explanation: Explanation) -> Iterable[str]:
    """Each bar has a mark where its threshold is: an expert's to be needed, nobody's to be meant."""
    thresholds, scores = explanation.thresholds, explanation.decision.scores
    assert scores is not None  # an explanation's decision is the router's
    yield (
        f"\nScores   (needed from {thresholds.accept:.0%}, may be meant from {thresholds.clarify:.0%}; "
        f"runner-up: {explanation.decision.runner_up or 'nobody'})"
    )
    for name, p in scores.ranked():
        yield f"  {name:<14}{p:6.1%}  {_bar_with_mark(p, thresholds.accept)}"
    yield f"  {'none of them':<14}{scores.none:6.1%}  {_bar_with_mark(scores.none, thresholds.clarify)}"


def _weighed(explanation: Explanation) -> Iterable[str]:
    for name in explanation.about if explanation.words else ():
        weights = {word.text.casefold(): (word.text, word.weights[name]) for word in explanation.words}
        heaviest = max(FULL_BAR, *(abs(weight) for _, weight in weights.values()))
        widest = max(len(text) for text, _ in weights.values())
        signs = f"for (+, {SPEAKS_FOR}) and against (-, {SPEAKS_AGAINST})"
        yield f"\nWords {signs} {_named(name)}, as changes of its log-odds"
        for text, weight in sorted(weights.values(), key=lambda pair: -abs(pair[1])):
            sign = SPEAKS_FOR if weight > 0 else SPEAKS_AGAINST
            bar = sign * round(abs(weight) / heaviest * BAR_WIDTH)
            yield f"  {text:<{widest}}  {weight:+6.2f}  {bar}".rstrip()
    if explanation.words_left_out:
        yield f"\nA long message: {explanation.words_left_out} different words were not tried."


def _compared(explanation: Explanation) -> Iterable[str]:
    if explanation.nearest:
        yield "\nNearest examples   (cosine, who is needed, the question)"
    for example in explanation.nearest or ():
        who = ", ".join(example.experts) or "no expert"
        yield f"  {example.cosine:.2f}  {who:<14}{' '.join(example.query.split())}"


def _named(name: str) -> str:
    return "none of them" if name == GENERAL else name


def _bar_with_mark(share: float, threshold: float) -> str:
    bar = SPEAKS_FOR * round(share * BAR_WIDTH)
    mark = round(threshold * BAR_WIDTH)
    padded = f"{bar:<{BAR_WIDTH}}"
    return f"{padded[:mark]}{NEEDED_FROM}{padded[mark:]}".rstrip()
