"""Route a question: ``python -m scripts.query_router`` is ``expert-router route`` and takes its options."""

from __future__ import annotations

import sys

from expert_router.commands import run

if __name__ == "__main__":
    sys.exit(run(["route", *sys.argv[1:]]))
