"""Prepare the data: ``python -m scripts.data_preparation`` is ``expert-router prepare`` and takes its options."""

from __future__ import annotations

import sys

from expert_router.commands import run

if __name__ == "__main__":
    sys.exit(run(["prepare", *sys.argv[1:]]))
