"""Ask a question: ``python -m scripts.inference`` is ``expert-router ask`` and takes its options."""

from __future__ import annotations

import sys

from expert_router.commands import run

if __name__ == "__main__":
    sys.exit(run(["ask", *sys.argv[1:]]))
