"""Evaluating the experts' answers is not part of this version: says so and exits with status 2."""

from __future__ import annotations

import sys

MESSAGE = """scripts.evaluate: this version does not score the experts' answers yet. The router is scored, by kind of
question, with: expert-router bench routers"""

if __name__ == "__main__":
    sys.stderr.write(f"{MESSAGE}\n")
    sys.exit(2)
