"""Counters and histograms in Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/).

Written for one event loop and for many series: a series' labels become text when it begins, so that 10,000 of them are
written in a few milliseconds (docs/decisions/0016-telemetry.md has what a library takes).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

S = TypeVar("S")
Labels = tuple[str, ...]
"""A series' values of its family's labels, in their order."""


@dataclass(frozen=True, slots=True)
class Family:
    """What a metric is called, and what it says. ``labels`` name those that tell its series apart."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()

    def head(self) -> str:
        return f"# HELP {self.name} {self.text}\n# TYPE {self.name} {self.kind}\n"

    def labelled(self, values: Labels) -> str:
        """The inside of the braces."""
        return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(self.labels, values, strict=True))

    def lines(self, values: Mapping[Labels, float], also: str = "") -> Iterator[str]:
        """Of numbers that are known now; ``also`` are labels that all of them have."""
        for labels, value in values.items():
            yield _line(self.name, _joined(also, self.labelled(labels)), value)


class Counter:
    """Grows. Each combination of labels begins with its first ``inc``."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._series: dict[Labels, _Count] = {}

    def inc(self, *labels: str, by: float = 1) -> None:
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Count(self.family.labelled(labels))
        series.value += by

    def forget(self, gone: Callable[[Mapping[str, str]], bool]) -> None:
        self._series = _without(self._series, self.family, gone)

    def lines(self, also: str = "") -> Iterator[str]:
        for series in self._series.values():
            yield _line(self.family.name, _joined(also, series.labels), series.value)


class Histogram:
    """Counts by size; ``bounds`` are the buckets' upper ends, ascending, each of them part of its bucket."""

    def __init__(self, family: Family, bounds: tuple[float, ...]) -> None:
        self.family = family
        self._bounds = bounds
        self._ends = [f'le="{bound}"' for bound in bounds] + ['le="+Inf"']
        self._series: dict[Labels, _Sizes] = {}

    def observe(self, value: float, *labels: str) -> None:
        self.observe_all((value,), *labels)

    def observe_all(self, values: tuple[float, ...], *labels: str) -> None:
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Sizes(self.family.labelled(labels), [0] * len(self._ends))
        for value in values:
            series.counts[bisect_left(self._bounds, value)] += 1
            series.sum += value

    def forget(self, gone: Callable[[Mapping[str, str]], bool]) -> None:
        self._series = _without(self._series, self.family, gone)

    def lines(self, also: str = "") -> Iterator[str]:
        bucket, total, count = (f"{self.family.name}_{part}" for part in ("bucket", "sum", "count"))
        for series in self._series.values():
            labels, so_far = _joined(also, series.labels), 0
            before = f"{bucket}{{{labels}," if labels else f"{bucket}{{"
            for end, number in zip(self._ends, series.counts, strict=True):
                so_far += number
                yield f"{before}{end}}} {so_far}\n"
            yield _line(total, labels, series.sum)
            yield _line(count, labels, so_far)


@dataclass(slots=True)
class _Count:
    labels: str
    value: float = 0


@dataclass(slots=True)
class _Sizes:
    labels: str
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0


def _without(series: dict[Labels, S], family: Family, gone: Callable[[Mapping[str, str]], bool]) -> dict[Labels, S]:
    return {labels: each for labels, each in series.items() if not gone(dict(zip(family.labels, labels, strict=True)))}


def _joined(*labels: str) -> str:
    return ",".join(filter(None, labels))


def _line(name: str, labels: str, value: float) -> str:
    return f"{name}{{{labels}}} {value}\n" if labels else f"{name} {value}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
