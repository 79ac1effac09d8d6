"""Several specialised LLM experts behind one endpoint, with a router that knows when to abstain.

``expert_router.open()`` gives a running system with ``route``, ``ask``, ``stream`` and ``close``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expert_router.errors import ExpertRouterError
    from expert_router.facade import ExpertRouter, open  # noqa: A004 - used as expert_router.open
    from expert_router.types import Answer, Decision, Message

# OpenVINO reports each import of it to Google Analytics, without asking, where its telemetry package is found. None of
# our processes finds it, whichever of our modules imports OpenVINO first.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # what makes an import fail

__all__ = ["Answer", "Decision", "ExpertRouter", "ExpertRouterError", "Message", "open"]

_HOME_OF = {
    "Answer": "types",
    "Decision": "types",
    "ExpertRouter": "facade",
    "ExpertRouterError": "errors",
    "Message": "types",
    "open": "facade",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562): ``import expert_router`` itself costs nothing."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'expert_router' has no attribute {name!r}")
    return getattr(import_module(f"expert_router.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
