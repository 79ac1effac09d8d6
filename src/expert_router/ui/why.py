"""Why this expert: the words tinted by what they weigh, every score with its threshold, the examples most like it.

Drawn into the decision's card; its text is fetched when it is opened, which ``data-ask`` on a closed one asks for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_router.types import GENERAL
from expert_router.ui.client import Failed
from expert_router.ui.markup import bar, div, percent, text, waiting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from expert_router.types import Explanation, NearestExample, WordWeight
    from expert_router.ui.catalogue import Catalogue
    from expert_router.ui.conversation import Exchange

    Found = Explanation | Failed

NONE_OF_THEM = "None of them"
NUMBERED = 0.25
"""Words with so much of the heaviest one's weight carry theirs as a number."""
FULL_TINT = 1.0
"""The least change of log-odds that is shown as strongly as possible, where no word changes them more."""
STILL_READING = "The examples are still being read. Close this and open it again in a moment."


def why(exchange: Exchange, found: Found | None, catalogue: Catalogue, *, askable: bool) -> str:
    """The folded piece of a card; ``found`` is ``None`` before it was opened, which only an ``askable`` one can be.

    Where the person chose who answers there is nothing to explain.
    """
    if exchange.routed is None or exchange.routed.decision.scores is None:
        return ""
    match found:
        case None:
            return _folded(waiting("Looking at each word"), ask=True) if askable else ""
        case Failed(message):
            problem = f"<strong>No explanation.</strong> {text(message)}"
            return _folded(div("er-problem", problem, role="alert"), ask=askable, opened=True)
    body = _words(found, catalogue) + _scores(found, catalogue) + _nearest(found.nearest, catalogue)
    return _folded(body, ask=askable and found.nearest is None, opened=True)


def _folded(body: str, *, ask: bool, opened: bool = False) -> str:
    attributes = (" data-ask" if ask else "") + (" open" if opened else "")
    return f'<details class="er-why"{attributes}><summary>Why?</summary>{body}</details>'


def _words(explanation: Explanation, catalogue: Catalogue) -> str:
    groups = "".join(_group(explanation, name, catalogue) for name in explanation.about if explanation.words)
    left_out = explanation.words_left_out
    note = f'<p class="er-hint">A long message: {left_out} different words were not tried.</p>' if left_out else ""
    hint = '<p class="er-hint">Tinted words speak for it, underlined ones against; numbers are changes of log-odds.</p>'
    return _part("The words that mattered", groups + (hint if groups else "") + note) if groups or note else ""


def _group(explanation: Explanation, name: str, catalogue: Catalogue) -> str:
    """The question, below it what it was read with, as the words speak for or against one of those it is about."""
    heaviest = max(FULL_TINT, *(abs(word.weights.get(name, 0.0)) for word in explanation.words))
    turns = [explanation.query, *reversed(explanation.history)]
    said = []
    for turns_back, turn in enumerate(turns):
        words = [word for word in explanation.words if word.turns_back == turns_back]
        if words or not turns_back:
            before = "" if not turns_back else '<span class="er-before">Before it:</span> '
            said.append(f'<p class="er-said">{before}{_tinted(turn, words, name, heaviest)}</p>')
    by = f'<p class="er-by">{text(_title(name, catalogue))}</p>'
    return div(f"er-group {catalogue.colour(name)}", by + "".join(said))


def _tinted(turn: str, words: Iterable[WordWeight], name: str, heaviest: float) -> str:
    pieces, at = [], 0
    for word in words:
        pieces += [
            text(turn[at : word.start]),
            _word(turn[word.start : word.end], word.weights.get(name, 0.0), heaviest),
        ]
        at = word.end
    return "".join(pieces) + text(turn[at:])


def _word(said: str, weight: float, heaviest: float) -> str:
    share = min(abs(weight) / heaviest, 1.0)
    number = f"<small>{_signed(weight)}</small>" if share >= NUMBERED else ""
    direction = "er-for" if weight > 0 else "er-against"
    style = f"--share:{share:.2f}"
    return f'<span class="er-word {direction}" style="{style}" title="{_signed(weight, 2)}">{text(said)}{number}</span>'


def _scores(explanation: Explanation, catalogue: Catalogue) -> str:
    scores, thresholds = explanation.decision.scores, explanation.thresholds
    if scores is None:
        return ""
    chosen = explanation.decision.experts
    rows = [
        bar(catalogue.title(name), p, f"{catalogue.colour(name)}{' er-chosen' * (name in chosen)}", thresholds.accept)
        for name, p in scores.ranked()
    ]
    rows.append(bar(NONE_OF_THEM, scores.none, "er-none", thresholds.clarify))
    hint = (
        f"Marked: an expert is needed from {percent(thresholds.accept)}; whoever reaches "
        f"{percent(thresholds.clarify)}, none of them included, may be meant."
    )
    return _part("The scores", div("er-bars", "".join(rows)) + f'<p class="er-hint">{text(hint)}</p>')


def _nearest(examples: tuple[NearestExample, ...] | None, catalogue: Catalogue) -> str:
    if examples is None:
        return _part("The nearest examples", f'<p class="er-hint">{STILL_READING}</p>')
    rows = "".join(_example(example, catalogue) for example in examples)
    hint = '<p class="er-hint">Questions that the router learnt from; 1.00 would be the same.</p>'
    return _part("The nearest examples", f'<ul class="er-near">{rows}</ul>{hint}') if rows else ""


def _example(example: NearestExample, catalogue: Catalogue) -> str:
    names = example.experts or (GENERAL,)
    owners = " ".join(f'<span class="er-by {catalogue.colour(n)}">{text(_title(n, catalogue))}</span>' for n in names)
    return f'<li><span class="er-number">{example.cosine:.2f}</span><span>{text(example.query)} {owners}</span></li>'


def _part(title: str, body: str) -> str:
    return f"<section><h4>{title}</h4>{body}</section>"


def _title(name: str, catalogue: Catalogue) -> str:
    return NONE_OF_THEM if name == GENERAL else catalogue.title(name)


def _signed(weight: float, digits: int = 1) -> str:
    return f"{weight:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
