"""What Prometheus reads, read by its own Python parser."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from expert_router.telemetry.series import Counter, Family, Histogram

if TYPE_CHECKING:
    from prometheus_client import Metric

SPOKEN = Family("spoken_total", "counter", "Words.", ("who", "where"))
TOOK = Family("took_seconds", "histogram", "Time.", ("who",))


def read(each: Counter | Histogram, also: str = "") -> Metric:
    (family,) = text_string_to_metric_families(each.family.head() + "".join(each.lines(also)))
    return family


def test_a_counter_is_read_as_it_was_counted() -> None:
    counter = Counter(SPOKEN)
    counter.inc("ann", "here")
    counter.inc("ann", "here", by=2)
    counter.inc("bob", "here")
    family = read(counter, 'worker="3"')
    assert (family.type, family.documentation) == ("counter", "Words.")
    assert [(sample.labels, sample.value) for sample in family.samples] == [
        ({"worker": "3", "who": "ann", "where": "here"}, 3),
        ({"worker": "3", "who": "bob", "where": "here"}, 1),
    ]


def test_a_label_may_be_any_text() -> None:
    counter, name = Counter(SPOKEN), 'a "b"\\n\nc\\'
    counter.inc(name, "")
    assert read(counter).samples[0].labels == {"who": name, "where": ""}


def test_a_bucket_holds_what_is_as_large_as_its_end() -> None:
    histogram = Histogram(TOOK, (0.1, 0.25))
    for value in (0.1, 0.2, 0.25, 7.0):
        histogram.observe(value, "ann")
    samples = {(sample.name, sample.labels.get("le")): sample.value for sample in read(histogram).samples}
    assert samples == {
        ("took_seconds_bucket", "0.1"): 1,
        ("took_seconds_bucket", "0.25"): 3,
        ("took_seconds_bucket", "+Inf"): 4,
        ("took_seconds_count", None): 4,
        ("took_seconds_sum", None): pytest.approx(7.55),
    }


def test_a_histogram_without_labels_has_none_but_its_ends() -> None:
    histogram = Histogram(Family("took_seconds", "histogram", "Time."), (1.0,))
    histogram.observe(0.5)
    assert [sample.labels for sample in read(histogram).samples] == [{"le": "1.0"}, {"le": "+Inf"}, {}, {}]


def test_what_is_gone_is_not_told_any_more() -> None:
    counter = Counter(SPOKEN)
    counter.inc("ann", "here")
    counter.inc("bob", "here")
    counter.forget(lambda labels: labels["who"] == "ann")
    assert [sample.labels["who"] for sample in read(counter).samples] == ["bob"]


def test_numbers_keep_their_size() -> None:
    family = Family("size", "gauge", "Any.", ("n",))
    values = {("0",): 1e-9, ("1",): 2**53, ("2",): 1.5e300, ("3",): math.inf}
    text = family.head() + "".join(family.lines(values))
    (read_back,) = text_string_to_metric_families(text)
    assert [sample.value for sample in read_back.samples] == list(values.values())
