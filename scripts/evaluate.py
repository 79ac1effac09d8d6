"""Measure router and answers: ``python -m scripts.evaluate`` is ``expert-router evaluate`` and takes its options."""

from __future__ import annotations

import sys

from expert_router.commands import run

if __name__ == "__main__":
    sys.exit(run(["evaluate", *sys.argv[1:]]))
