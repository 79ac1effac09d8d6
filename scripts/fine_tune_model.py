"""Fine-tuning an expert is not part of this version: says so and exits with status 2."""

from __future__ import annotations

import sys

MESSAGE = """scripts.fine_tune_model: this version does not fine-tune experts yet; each is the base model with its own
instructions (experts/<name>/expert.toml). The router can be trained: expert-router train router"""

if __name__ == "__main__":
    sys.stderr.write(f"{MESSAGE}\n")
    sys.exit(2)
