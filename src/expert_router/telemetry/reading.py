"""``GET /metrics`` read back: what happened between two scrapes, of all processes together."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "expert_router_"
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPES = {r"\\": "\\", r"\n": "\n", r"\"": '"'}

Sample = tuple[dict[str, str], float]


class Scrape:
    """Every sample of an exposition, by the metric's name; ours are called without ``expert_router_``."""

    def __init__(self, text: str) -> None:
        self._samples: dict[str, list[Sample]] = {}
        for name, labels, value in _SAMPLE.findall(text):
            pairs = {
                key: re.sub(r"\\.", lambda found: _ESCAPES[found[0]], said) for key, said in _LABEL.findall(labels)
            }
            self._samples.setdefault(name.removeprefix(PREFIX), []).append((pairs, float(value)))

    def of(self, name: str, labels: Mapping[str, str]) -> list[Sample]:
        """Those with these labels, and perhaps more."""
        return [each for each in self._samples.get(name, []) if labels.items() <= each[0].items()]

    def sum(self, name: str, **labels: str) -> float:
        return sum((value for _, value in self.of(name, labels)), 0.0)

    def counts(self, name: str, labels: Mapping[str, str]) -> dict[float, float]:
        """A histogram's, by the ends of its buckets: how many are not larger."""
        counts: dict[float, float] = {}
        for pairs, value in self.of(f"{name}_bucket", labels):
            end = float(pairs["le"])
            counts[end] = counts.get(end, 0.0) + value
        return dict(sorted(counts.items()))


class Between:
    """Two scrapes, ``seconds`` apart. What begins anew between them counts from 0."""

    def __init__(self, before: Scrape, after: Scrape, seconds: float) -> None:
        self._before = before
        self.after = after
        self._seconds = seconds

    def rate(self, name: str, **labels: str) -> float:
        """A second."""
        return self.grown(name, **labels) / self._seconds

    def grown(self, name: str, **labels: str) -> float:
        before, after = self._before.sum(name, **labels), self.after.sum(name, **labels)
        return after - before if after >= before else after

    def quantile(self, share: float, name: str, **labels: str) -> float | None:
        """As Prometheus' ``histogram_quantile``: linear within a bucket; ``None`` where nothing was observed."""
        before, after = self._before.counts(name, labels), self.after.counts(name, labels)
        counts = {end: count - before.get(end, 0.0) for end, count in after.items()}
        if any(count < 0 for count in counts.values()):
            counts = after
        rank = share * max(counts.values(), default=0.0)
        start = below = 0.0
        for end, count in counts.items():
            if count and count >= rank:
                return start if math.isinf(end) else start + (end - start) * (rank - below) / (count - below)
            start, below = end, count
        return None
