"""Fine-tune an expert: ``python -m scripts.fine_tune_model sleep`` is ``expert-router train expert sleep``."""

from __future__ import annotations

import sys

from expert_router.commands import run

if __name__ == "__main__":
    sys.exit(run(["train", "expert", *sys.argv[1:]]))
