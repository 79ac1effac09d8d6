"""The chat page's front door: a page for a backend's address, inside another application.

Light to import; Gradio is imported when it is mounted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from expert_router.ui.client import ChatClient

if TYPE_CHECKING:
    from fastapi import FastAPI

_STYLE = Path(__file__).with_name("style.css")


def mount(
    app: FastAPI, base_url: str, path: str, *, key: str | None = None, certificate: Path | None = None
) -> FastAPI:
    """Add the page to ``app`` below ``path``, and only there; the page starts and ends with ``app``'s lifespan.

    It is a client of the API at ``base_url``, which need not be up yet. ``key`` is for visitors who bring none; see
    ``ChatClient`` for ``certificate``. Raises ``ConfigError`` when ``base_url`` is not the address of a web server.
    """
    import gradio

    from expert_router.ui import page  # noqa: PLC0415 - Gradio takes seconds to import

    gradio.mount_gradio_app(
        app,
        page.build(ChatClient(base_url, key=key, certificate=certificate)),
        path,
        theme=page.theme(),
        css_paths=_STYLE,
        head=page.HEAD,
        footer_links=[],
        run_history=False,
        show_error=True,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
    )
    return app
