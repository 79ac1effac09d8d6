"""The page's own pieces of HTML: who answers, how sure the router was, what was read, what went wrong.

Everything that came from outside is escaped here, and text of models never passes through here: it is shown as
sanitised markdown (``plain_markdown``).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from expert_router.types import AUTO, GENERAL
from expert_router.ui.catalogue import GENERAL_TITLE
from expert_router.ui.markup import bar, div, percent, text, waiting

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from expert_router.types import Passage, Scores, Served
    from expert_router.ui.catalogue import Catalogue
    from expert_router.ui.client import Done, Routed
    from expert_router.ui.conversation import Exchange, Part

_MAX_BARS = 4
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)
_LINKED_CITATION = re.compile(r"(?<!\\)\[(\d{1,2})\](?=[:(])")
"""A citation that markdown would take for a link, and so hide."""
_AGAIN = (
    '<span class="er-again" title="The very same was asked before: this is the answer that was given then, word for '
    'word.">given again</span>'
)


def plain_markdown(said: str) -> str:
    """Text of a model or a person, as markdown that can hold neither HTML nor pictures: both show as typed.

    A citation like [1] stays one, whatever follows it.
    """
    parts = _CODE.split(said)
    parts[::2] = [_plain(part) for part in parts[::2]]
    return "".join(parts)


def decision_card(exchange: Exchange, catalogue: Catalogue, reasons: str = "") -> str:
    """Who answers and why; while that is open, that it is being decided. At the end, what the answer cost.

    ``reasons`` is what ``ui.why`` says of it, folded away.
    """
    routed = exchange.routed
    if routed is None and not exchange.busy:
        return ""
    if routed is None:
        what = "Choosing who answers" if exchange.model == AUTO else f"Asking {catalogue.title(exchange.model)}"
        return div("er-card er-none", waiting(what), kind="pending")
    given_again = {name for name, whence in exchange.done.cache.items() if whence == "hit"} if exchange.done else set()
    head = div("er-head", _badges(routed, catalogue, given_again) + _runner_up(routed, catalogue))
    reason = f'<p class="er-reason">{text(routed.decision.reason)}</p>'
    scores = routed.decision.scores
    bars = _bars(scores, routed.decision.experts, catalogue) if scores else ""
    cost = div("er-cost", _cost(exchange.done)) if exchange.done else ""
    return div(
        f"er-card {_card_colour(routed, catalogue)}", head + reason + bars + cost + reasons, kind=routed.decision.kind
    )


def footnote(exchange: Exchange) -> str:
    """What stands in place of the text or below it: that it is coming, was stopped, or what went wrong."""
    match exchange.progress:
        case "answering" if not exchange.text:
            return div("er-foot", waiting("Answering"))
        case "stopped":
            return div("er-foot er-stopped", "Stopped.")
        case "failed":
            what = "The answer broke off." if exchange.text else "No answer."
            return div("er-problem", f"<strong>{what}</strong> {text(exchange.problem)}", role="alert")
        case _:
            return ""


def noted(said: str) -> str:
    """That what the person said was taken down."""
    return div("er-foot", text(said), role="status")


def sources(exchange: Exchange, catalogue: Catalogue) -> str:
    """What each expert read, once the answer is there: what it names can be opened, the rest is folded away."""
    read = [part for part in exchange.parts if part.found]
    if exchange.busy or not exchange.text or not read:
        return ""
    title = "<h3>Sources</h3>" if any(part.cited for part in read) else ""
    named = len(exchange.parts) > 1
    groups = "".join(_group(part, catalogue, named=named) for part in read)
    return f'<section class="er-sources" aria-label="Sources">{title}{groups}</section>'


def banner(problem: str, hint: str) -> str:
    return div("er-banner", f"<strong>{text(problem)}</strong> {text(hint)}", role="alert")


def header() -> str:
    return (
        '<header class="er-header"><span class="er-logo" aria-hidden="true"><i></i><i></i><i></i></span>'
        "<div><h1>Expert Router</h1><p>Ask a question, and the right expert answers.</p></div></header>"
    )


def welcome(catalogue: Catalogue) -> str:
    """What an empty conversation shows: who can answer."""
    about = {model.name: model.description for model in catalogue.models}
    rows = "".join(
        f'<li class="{catalogue.colour(name)}"><b>{text(catalogue.title(name))}</b> {text(about[name])}</li>'
        for name in catalogue.experts
    )
    experts = f'<ul class="er-experts">{rows}</ul>' if rows else ""
    return f'<div class="er-welcome"><h2>What would you like to know?</h2>{experts}</div>'


def _plain(said: str) -> str:
    return _LINKED_CITATION.sub(r"\\[\1\\]", said.replace("<", "&lt;").replace("![", "!\\["))


def _group(part: Part, catalogue: Catalogue, *, named: bool) -> str:
    """One expert's passages; they are counted within it, so its name stands above where several answer."""
    name = f'<p class="er-by">{text(catalogue.title(part.expert))}</p>' if named else ""
    passages = [(number, found.passage) for number, found in enumerate(part.found, start=1)]
    cited = "".join(_source(number, passage) for number, passage in passages if number in part.cited)
    others = [_source(number, passage) for number, passage in passages if number not in part.cited]
    return div(f"er-group {catalogue.colour(part.expert)}", name + cited + _looked_at(others, also=bool(cited)))


def _looked_at(others: Sequence[str], *, also: bool) -> str:
    if not others:
        return ""
    passages = "1 passage" if len(others) == 1 else f"{len(others)} passages"
    summary = f"Also looked at {passages}" if also else f"Looked at {passages}"
    return f'<details class="er-others"><summary>{summary}</summary>{"".join(others)}</details>'


def _source(number: int, passage: Passage) -> str:
    head = (
        f'<span class="er-number">[{number}]</span><span class="er-titled">{text(passage.title)} '
        f'<span class="er-file">{text(passage.file)}</span></span>'
    )
    return f'<details class="er-source"><summary>{head}</summary><p>{text(passage.text)}</p></details>'


def _badges(routed: Routed, catalogue: Catalogue, given_again: Collection[str]) -> str:
    decision = routed.decision
    match decision.kind:
        case "clarify":
            return _badge("Which one do you mean?", "er-open")
        case "refused":
            return _badge("Not answered", "er-open")
    scores = decision.scores.experts if decision.scores else {}
    badges = [
        f'<span class="er-who">{_badge(_title(name, routed, catalogue), catalogue.colour(name))}'
        f"{_score(scores.get(name))}{_proof(routed.served.get(name))}{_AGAIN if name in given_again else ''}</span>"
        for name in routed.experts
    ]
    note = '<span class="er-note">chosen by you</span>' if decision.kind == "forced" else ""
    return "".join(badges) + note


def _badge(title: str, colour: str) -> str:
    return f'<span class="er-badge {colour}">{text(title)}</span>'


def _score(score: float | None) -> str:
    return "" if score is None else f'<span class="er-score">{percent(score)}</span>'


def _proof(served: Served | None) -> str:
    """Which weights answer: the beginning of the adapter's hash, all of it where the mouse rests."""
    if served is None:
        return ""
    if served.adapter is None:
        return f'<span class="er-proof" title="{text(served.base)}, without an adapter">base model</span>'
    about = f"{served.base} with the adapter {served.adapter}"
    return f'<span class="er-proof" title="{text(about)}">adapter {text(served.adapter[:8])}</span>'


def _runner_up(routed: Routed, catalogue: Catalogue) -> str:
    name, scores = routed.decision.runner_up, routed.decision.scores
    if not name:
        return ""
    score = None if scores is None else scores.none if name == GENERAL else scores.experts.get(name)
    shown = "" if score is None else f" {percent(score)}"
    return f'<span class="er-note">Runner-up: {text(catalogue.title(name))}{shown}</span>'


def _bars(scores: Scores, chosen: Iterable[str], catalogue: Catalogue) -> str:
    rows = [
        bar(catalogue.title(name), score, f"{catalogue.colour(name)}{' er-chosen' if name in chosen else ''}")
        for name, score in scores.ranked()[:_MAX_BARS]
    ]
    rows.append(bar("None of them", scores.none, "er-none"))
    return div("er-bars", "".join(rows))


def _card_colour(routed: Routed, catalogue: Catalogue) -> str:
    if routed.decision.kind == "refused":
        return "er-open"
    return catalogue.colour(routed.experts[0]) if routed.experts else "er-none"


def _title(name: str, routed: Routed, catalogue: Catalogue) -> str:
    return GENERAL_TITLE if name == GENERAL else routed.titles.get(name) or catalogue.title(name)


def _cost(done: Done) -> str:
    first, total = done.timings.first_token_s, done.timings.total_s
    facts = [
        f"first word after {_seconds(first)}" if first is not None else "",
        f"complete after {_seconds(total)}" if total is not None else "",
        f"{done.usage.completion_tokens} tokens" if done.usage else "",
        "cut off at the length limit" if done.truncated else "",
    ]
    return " · ".join(fact for fact in facts if fact)


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
