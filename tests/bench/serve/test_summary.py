"""The figures of one run and of several: each request counts once, and missing figures are left out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.serve import summary
from bench.serve.load import TIMED_OUT, Records
from bench.serve.wire import LOST
from tests.bench.serve.some_runs import RUN


def records(*requests: tuple[float, float, int]) -> Records:
    """Records of requests that are given as (due, end, status)."""
    due, end, status = (list(column) for column in zip(*requests, strict=True))
    return Records(due, end, status)


def test_what_became_of_every_request() -> None:
    """Every request counts as answered, refused or lost; those of the warm-up do not count."""
    found = summary.figures(
        records((-1, -0.9, 500), (0, 0.1, 200), (0.1, 0.2, 429), (0.2, 0.3, 503), (0.3, 0.4, 500), (0.4, 2, LOST)),
        seconds=1,
        slo_s=1,
        images=1,
    )

    assert (5, 1, 2, 2) == tuple(found[name] for name in ("sent", "answered", "refused", "lost"))


def test_throughput_counts_images_answered_within_the_time() -> None:
    """Throughput counts images by the time of their answer, also of requests from the warm-up."""
    found = summary.figures(
        records((-0.1, 0.1, 200), (0.0, 0.5, 200), (1.0, 1.9, 200), (1.5, 2.5, 200), (1.6, 1.7, TIMED_OUT)),
        seconds=2,
        slo_s=0.6,
        images=64,
    )

    assert 64 * 3 / 2 == found["images_per_s"]
    assert 64 * 2 / 2 == found["good_per_s"]


def test_latencies_are_those_of_answers() -> None:
    """Latencies are those of answers, not of refusals, which are quick."""
    found = summary.figures(
        records(*((i, i + 0.010 * i, 200) for i in range(1, 101)), (5, 5.0001, 429)), seconds=200, slo_s=1, images=1
    )

    assert (500.0, 950.0, 990.0) == tuple(found[name] for name in ("p50_ms", "p95_ms", "p99_ms"))


def test_no_answer_has_no_latency() -> None:
    """Without answers the latency is missing, not zero or infinite."""
    found = summary.figures(records((0, 1, LOST)), seconds=1, slo_s=1, images=1)

    assert found["p99_ms"] is None
    assert 0 == found["images_per_s"]


@pytest.mark.parametrize(("percent", "expected"), [(50, 2), (99, 3), (100, 3), (1, 1), (34, 2), (33, 1)])
def test_a_quantile_is_a_value_that_was_measured(percent: float, expected: float) -> None:
    """A quantile is the smallest measured value that this percentage does not exceed."""
    assert expected == summary.quantile([3, 1, 2], percent)


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """A ratio is the median over the rounds that have both sides, not the ratio of two medians."""
    ours = [replace(RUN, round=n, images_per_s=rate) for n, rate in ((1, 100.0), (2, 300.0), (3, 200.0), (4, 1.0))]
    theirs = [replace(RUN, round=n, images_per_s=rate) for n, rate in ((1, 50.0), (2, 300.0), (3, 50.0))]

    assert 2.0 == summary.ratio(ours, theirs, "images_per_s")
    assert summary.ratio(ours, [], "images_per_s") is None


def test_a_median_leaves_out_what_is_not_there() -> None:
    """A median leaves out runs without the figure, such as the p99 of a run without answers."""
    assert 3.0 == summary.median([replace(RUN, p99_ms=value) for value in (3.0, None)], "p99_ms")
    assert summary.median([replace(RUN, p99_ms=None)], "p99_ms") is None


def test_runs_are_written_and_read() -> None:
    """Runs that are written and read are equal, and are grouped in order."""
    runs = [replace(RUN, round=2), RUN, replace(RUN, peer="mosec")]

    assert runs == summary.read(summary.write(runs))
    assert [1, 2] == [run.round for run in summary.by_key(runs)[RUN.regime, RUN.scenario, RUN.peer]]
