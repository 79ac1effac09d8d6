"""docs/metrics.md lists the metrics as they are."""

from __future__ import annotations

import re
from pathlib import Path

from expert_router.telemetry.metrics import Metrics
from expert_router.telemetry.workers import UP

DOC = Path(__file__).parents[2] / "docs/metrics.md"


def test_every_metric_is_listed_with_its_type_labels_and_meaning() -> None:
    rows = re.findall(
        r"^\| `((?:expert_router|process)_\w+)` \| (\w+) \| (.*?) ?\| (.*) \|$", DOC.read_text("utf-8"), re.MULTILINE
    )
    listed = [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows]
    assert listed == [(each.name, each.kind, each.labels, each.text) for each in (*Metrics().families, UP)]
