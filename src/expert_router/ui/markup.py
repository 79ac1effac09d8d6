"""What the page's pieces of HTML are made of. Everything that came from outside goes through ``text``."""

from __future__ import annotations

import html


def text(said: str) -> str:
    """Escaped for HTML and for Gradio's templates, which know ``${…}`` and ``{{…}}``."""
    return html.escape(said).replace("$", "&#36;").replace("{", "&#123;")


def div(classes: str, inner: str, *, role: str = "", kind: str = "") -> str:
    attributes = (f' role="{role}"' if role else "") + (f' data-kind="{html.escape(kind)}"' if kind else "")
    return f'<div class="{classes}"{attributes}>{inner}</div>'


def percent(share: float) -> str:
    return f"{share:.0%}".replace("%", "\N{NO-BREAK SPACE}%")


def bar(title: str, share: float, classes: str, mark: float | None = None) -> str:
    """A share of one, with its number; ``mark`` is a place on the bar."""
    marked = "" if mark is None else f'<span class="er-mark" style="left:{_place(mark)}"></span>'
    return (
        f'<div class="er-bar {classes}"><span class="er-name">{text(title)}</span>'
        f'<span class="er-track"><span class="er-fill" style="width:{_place(share)}"></span>{marked}</span>'
        f'<span class="er-percent">{percent(share)}</span></div>'
    )


def waiting(what: str) -> str:
    dots = '<span class="er-dots" aria-hidden="true"><i></i><i></i><i></i></span>'
    return f'<span class="er-waiting" role="status">{text(what)}{dots}</span>'


def _place(share: float) -> str:
    return f"{min(max(share, 0.0), 1.0):.1%}"
