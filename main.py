"""Start the API and the chat page: ``python main.py`` is ``expert-router serve`` and takes its options."""

from __future__ import annotations

import sys

from expert_router.commands import run

if __name__ == "__main__":
    sys.exit(run(["serve", *sys.argv[1:]]))
