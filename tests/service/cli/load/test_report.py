"""What is made of times: histograms, windows, phases."""

from __future__ import annotations

import json

import numpy as np
import pytest

from service.cli.load.document import as_text
from service.cli.load.generator import BROKEN, TIMED_OUT, Samples
from service.cli.load.histogram import QUANTILES, Histogram
from service.cli.load.report import Report, Run, durations, summarised
from service.cli.load.runs import arrival_times

LATENCIES = np.random.default_rng(0).lognormal(-5, 1.5, 200_000)
SHARES = [*QUANTILES.values(), 0.05, 0.25]


def test_quantiles_have_three_digits_over_six_decades() -> None:
    for scale in (1e-3, 1e-1, 10.0, 1000.0):
        found = Histogram.of(LATENCIES * scale).quantiles(SHARES)
        exact = np.quantile(LATENCIES * scale, SHARES, method="inverted_cdf")
        np.testing.assert_allclose(found, exact, rtol=1e-3)


def test_few_values_give_their_own_quantiles() -> None:
    histogram = Histogram.of([0.001, 0.002, 0.003, 0.1])
    assert histogram.quantiles([0.25, 0.5, 0.75, 1]) == pytest.approx(
        [0.001, 0.002, 0.003, 0.1], rel=1e-3
    )
    assert Histogram.of(np.arange(1, 101) / 1000).summary_ms() == pytest.approx(
        {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "p99.9": 100, "max": 100}, rel=1e-3
    )


def test_a_sum_is_the_histogram_of_all() -> None:
    parts = Histogram.of(LATENCIES[:50_000]) + Histogram.of(LATENCIES[50_000:])
    whole = Histogram.of(LATENCIES)
    np.testing.assert_array_equal(parts.bins, whole.bins)
    np.testing.assert_array_equal(parts.counts, whole.counts)
    assert parts.maximum == whole.maximum == LATENCIES.max()
    assert (parts + Histogram.of([])).total == len(LATENCIES)


def test_what_is_exported_suffices_to_recompute_everything() -> None:
    whole = Histogram.of(LATENCIES)
    exported = json.loads(json.dumps(whole.as_json()))
    again = Histogram.from_json(exported)
    np.testing.assert_array_equal(again.bins, whole.bins)
    assert again.summary_ms() == whole.summary_ms()
    # As somebody would without this code.
    reached = np.cumsum(exported["counts"]) >= 0.99 * sum(exported["counts"])
    p99 = exported["values_ms"][int(np.argmax(reached))]
    assert p99 == pytest.approx(np.quantile(LATENCIES, 0.99) * 1000, rel=1e-3)


def test_an_empty_histogram_tells_nothing() -> None:
    empty = Histogram.of([])
    assert empty.summary_ms() == {}
    with pytest.raises(ValueError, match="empty"):
        empty.quantiles(0.5)


@pytest.mark.parametrize("rate", [3.0, 250.0])
def test_arrivals_have_the_rate(rate: float) -> None:
    seconds = 1000.0
    fixed = arrival_times(rate, seconds, "fixed", 0)
    assert len(fixed) == rate * seconds
    np.testing.assert_allclose(np.diff(fixed), 1 / rate, rtol=1e-6)
    poisson = arrival_times(rate, seconds, "poisson", 0)
    assert len(poisson) == pytest.approx(rate * seconds, abs=5 * np.sqrt(rate * seconds))
    gaps = np.diff(poisson)
    assert gaps.min() >= 0
    assert gaps.std() == pytest.approx(1 / rate, rel=0.1)  # Exponential: as large as the mean.
    np.testing.assert_array_equal(poisson, arrival_times(rate, seconds, "poisson", 0))
    assert len(poisson) != len(arrival_times(rate, seconds, "poisson", 1))


def report_of(
    run: Run, *requests: tuple[float, float, int], timing: bytes = b"", begin: float = 100.0
) -> Report:
    """Of requests as (due, answered, status), both in seconds from the start of what counts."""
    rows = np.asarray(requests)
    samples = Samples(
        begin + rows[:, 0],
        begin + rows[:, 1],
        rows[:, 2].astype(np.int16),
        [timing] * len(rows),
        cpu=0.25,
    )
    return summarised(run, samples, begin, elapsed=1.0)


def test_requests_count_by_when_they_were_due_throughput_by_when_they_were_answered() -> None:
    report = report_of(
        Run(connections=4, seconds=2, rate=4, slo_ms=500),
        (-0.5, -0.1, 200),  # warm-up
        (-0.1, 0.1, 200),  # warm-up, but its answer is work done in the time that counts
        (0.0, 0.4, 200),
        (1.0, 1.6, 200),  # too late for the SLO
        (1.2, 1.21, 429),
        (1.3, 1.31, 504),
        (1.5, 1.6, BROKEN),
        (1.6, 11.6, TIMED_OUT),
        (1.9, 2.3, 200),  # within the SLO, but no work done in the time that counts
    )
    assert report.answers == {0: 2, 200: 3, 429: 1, 504: 1}
    assert report.timeouts == 1
    assert report.images_per_second == 3 / 2
    assert report.goodput == 2 / 2
    assert report.latency_ms["max"] == pytest.approx(600)
    assert report.refused_ms[429]["max"] == pytest.approx(10)
    assert set(report.refused_ms) == {429, 504}
    assert report.generator_cpu == 0.25
    assert report.phases_ms == {}


def test_phases_are_what_the_server_says_and_the_rest() -> None:
    timing = b'decode;dur=0.5, queue;desc="a";dur=1, cache;desc=hit, odd;dur=x, total;dur=4'
    report = report_of(Run(1, 1), (0, 0.010, 200), (0.1, 0.110, 200), timing=timing)
    assert {name: ms["p50"] for name, ms in report.phases_ms.items()} == pytest.approx(
        {"decode": 0.5, "queue": 1, "total": 4, "rest": 6}
    )


@pytest.mark.parametrize("timing", [b"", b";;,,=", b"total", b"total;dur", b"a;dur=;b"])
def test_a_slip_in_server_timing_gives_no_phase(timing: bytes) -> None:
    assert durations(timing) == {}


def test_nothing_answered_is_a_report_too() -> None:
    report = report_of(Run(1, 1, slo_ms=1), (0, 0.1, BROKEN))
    document = report.as_json()
    assert document["latency_ms"] == {}
    assert document["answers"] == {"0": 1}
    assert document["goodput"] == 0.0
    assert "refused_ms" not in document
    assert "rate" not in document


def test_lists_of_numbers_take_one_line() -> None:
    content = {"runs": [{"values_ms": [1.5, 2e-7, -3], "names": ["a", "b"]}], "none": []}
    text = as_text(content)
    assert json.loads(text) == content
    assert '"values_ms": [1.5, 2e-07, -3],' in text
