"""How a process of ours is started beside this one."""

from __future__ import annotations

import os
import sys


def child(code: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command that runs ``code`` in this Python, and the environment in which it imports what this process does."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return [sys.executable, "-P", "-c", code, *arguments], environment
