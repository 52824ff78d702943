"""Metrics: the documented set, bounded labels, zeros from the start, and a page that parses."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import values
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from service.errors import InferenceFailed, NotFound, RequestError, all_errors
from service.telemetry.definitions import METRICS, Metric
from service.telemetry.metrics import Metrics
from service.telemetry.multiprocess import MultiprocessDirectory
from service.telemetry.rejections import REASONS, Reason

DOCUMENTED = {
    "vim_requests_total": ("api", "op", "model", "code"),
    "vim_request_duration_seconds": ("api", "op", "model"),
    "vim_images_total": ("model", "op", "class"),
    "vim_joined_images_total": (),
    "vim_queue_wait_seconds": ("model", "class"),
    "vim_stage_duration_seconds": ("stage",),
    "vim_batch_size": ("model",),
    "vim_colour_profiles_total": ("kind",),
    "vim_batches_total": ("model",),
    "vim_queue_depth": ("class",),
    "vim_queue_capacity": (),
    "vim_body_bytes": ("class",),
    "vim_inflight_batches": (),
    "vim_decode_busy": (),
    "vim_rejected_total": ("reason",),
    "vim_decode_threads": (),
    "vim_fetches_total": ("outcome",),
    "vim_fetch_duration_seconds": (),
    "vim_model_info": ("model", "family", "version", "device", "dtype"),
    "vim_ready": ("model",),
    "vim_model_loads_total": ("model", "outcome"),
    "vim_model_load_seconds": ("model",),
    "vim_device_memory_bytes": ("model", "kind"),
    "vim_batch_limit": ("model", "device"),
    "vim_batch_retries_total": ("model", "reason"),
    "vim_device_up": ("model", "device"),
    "vim_device_lost_total": ("model", "device"),
    "vim_quarantined_images_total": ("model",),
    "vim_widened_images_total": ("model",),
}


@pytest.fixture
def metrics() -> Metrics:
    """The metrics of a fresh server."""
    metrics = Metrics(queue_capacity=256)
    metrics.model("demo")
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One sample of the page; None when it is absent."""
    for family in parse_text(metrics.render()[0].decode()):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None


def test_the_set_is_the_documented_one() -> None:
    """The metrics are the documented ones, since dashboards and autoscalers depend on the names."""
    assert {metric.name: metric.labels for metric in METRICS} == DOCUMENTED


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_listed_metric_is_on_the_page_as_described(metrics: Metrics, metric: Metric) -> None:
    """Every metric of the list is on the page, with its kind and help text."""
    page = metrics.render()[0].decode()

    assert f"# TYPE {metric.name} {metric.kind}\n" in page
    assert f"# HELP {metric.name} {metric.help}\n" in page


def test_the_page_holds_nothing_of_ours_that_is_not_listed(metrics: Metrics) -> None:
    """The page holds no metric of the service that is not listed, and no `_created` series."""
    metrics.request("native", "classify", "demo", 200, 0.1)
    page = metrics.render()[0].decode()
    typed = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE vim_")}

    assert typed == set(DOCUMENTED)
    assert "_created" not in page


def test_a_request_is_counted_and_timed(metrics: Metrics) -> None:
    """A request is counted by api, operation, model and code, and timed by all but the code."""
    metrics.request("native", "embed", "demo", 200, 0.02)

    assert value(metrics, "vim_requests_total", api="native", op="embed", model="demo", code="200") == 1
    assert value(metrics, "vim_request_duration_seconds_count", api="native", op="embed", model="demo") == 1
    timed = {"api": "native", "op": "embed", "model": "demo"}
    assert value(metrics, "vim_request_duration_seconds_bucket", le="0.02", **timed) == 1
    assert value(metrics, "vim_request_duration_seconds_bucket", le="0.01", **timed) == 0


def test_a_clients_model_name_makes_no_series(metrics: Metrics) -> None:
    """Unknown model names share one series, whatever clients ask for."""
    for attempt in range(20):
        metrics.request("native", "embed", f"model-{attempt}", 404, 0.001)

    assert value(metrics, "vim_requests_total", api="native", op="embed", model="other", code="404") == 20
    assert "model-7" not in metrics.render()[0].decode()


@pytest.mark.parametrize("code", sorted({200, *(error.status for error in all_errors())}))
@pytest.mark.parametrize("op", ["classify", "embed"])
def test_requests_begin_at_zero(metrics: Metrics, op: str, code: int) -> None:
    """Every status code of a request has a series at zero, which rate() needs before the first failure."""
    assert value(metrics, "vim_requests_total", api="native", op=op, model="demo", code=str(code)) == 0


def test_all_other_label_sets_begin_at_zero(metrics: Metrics) -> None:
    """Stages and reasons of the process begin at zero."""
    for stage in ("decode", "preprocess", "infer", "postprocess"):
        assert value(metrics, "vim_stage_duration_seconds_count", stage=stage) == 0
    for reason in get_args(Reason):
        assert value(metrics, "vim_rejected_total", reason=reason) == 0


def test_gauges_show_the_present(metrics: Metrics) -> None:
    """Gauges show the present queue and batches."""
    metrics.levels.images["interactive"].own[0] = 7
    metrics.levels.images["bulk"].own[0] = 4
    metrics.levels.batches = 2
    metrics.levels.decoding = (1, 2, 3)
    metrics.decoded(0.01, 0.002)

    assert value(metrics, "vim_queue_depth", **{"class": "interactive"}) == 7
    assert value(metrics, "vim_queue_depth", **{"class": "bulk"}) == 4
    assert value(metrics, "vim_queue_capacity") == 256
    assert value(metrics, "vim_inflight_batches") == 2
    assert value(metrics, "vim_decode_busy") == 3
    assert value(metrics, "vim_stage_duration_seconds_count", stage="decode") == 1


def test_a_stage_is_timed_while_its_context_lasts(metrics: Metrics) -> None:
    """A timed context is one observation of its stage."""
    with metrics.timed("postprocess"):
        pass

    assert value(metrics, "vim_stage_duration_seconds_count", stage="postprocess") == 1


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.code)
def test_an_error_is_counted_under_its_reason(metrics: Metrics, error: type[RequestError]) -> None:
    """An error is counted under its reason, if it has one."""
    metrics.refused(error("detail"))
    counted = [reason for reason in get_args(Reason) if value(metrics, "vim_rejected_total", reason=reason)]

    assert counted == ([REASONS[error.code]] if error.code in REASONS else [])


def test_failures_and_wrong_paths_are_no_rejections(metrics: Metrics) -> None:
    """Failures of the service and wrong paths are not counted as rejections."""
    metrics.refused(InferenceFailed("x"))
    metrics.refused(NotFound("x"))
    metrics.rejected("client_gone", 2)

    total = sum(value(metrics, "vim_rejected_total", reason=reason) or 0 for reason in get_args(Reason))
    assert total == 2


def test_every_reason_names_a_real_error() -> None:
    """Every code with a reason is the code of an error, so a renamed code cannot silently stop being counted."""
    assert set(REASONS) <= {error.code for error in all_errors()}


def test_the_content_type_follows_the_accept_header(metrics: Metrics) -> None:
    """The page has the format and Content-Type of the Accept header."""
    text, text_type = metrics.render("text/plain")
    openmetrics, openmetrics_type = metrics.render("application/openmetrics-text; version=1.0.0")

    assert text_type.startswith("text/plain; version=0.0.4")
    assert list(parse_text(text.decode()))
    assert openmetrics_type.startswith("application/openmetrics-text; version=1.0.0")
    assert list(parse_openmetrics(openmetrics.decode()))  # type: ignore[no-untyped-call]


def test_two_servers_share_nothing(metrics: Metrics) -> None:
    """Two servers in one process have separate metrics."""
    other = Metrics(queue_capacity=1)
    metrics.joined()

    assert value(other, "vim_joined_images_total") == 0
    assert value(other, "vim_queue_capacity") == 1


def test_the_process_itself_is_watched(metrics: Metrics) -> None:
    """The page shows memory and descriptors of the HTTP process."""
    page = metrics.render()[0]

    assert b"process_resident_memory_bytes" in page
    assert b"process_open_fds" in page


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_no_complaint(metrics: Metrics) -> None:
    """Names and types pass the checks of promtool."""
    checked = subprocess.run(["promtool", "check", "metrics"], input=metrics.render()[0], capture_output=True)

    assert checked.returncode == 0, checked.stderr.decode()


def test_several_processes_make_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters add up and outlive a process, a successor continues them, and gauges are of living processes only."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    alone = registered(4).render()[0].decode()
    shares = [MultiprocessDirectory(str(tmp_path), name) for name in ("parent", "http-1", "http-2")]
    parent = registered(0, shares[0])
    parent.model("m").ready(True)
    one = registered(2, shares[1])
    one.levels.images["interactive"].own[0] = 3
    one.levels.images["bulk"].own[0] = 3
    one.request("native", "classify", "m", 200, 0.01)
    one.sample()
    two = registered(2, shares[2])
    two.request("native", "classify", "m", 200, 0.02)
    before = two.render()[0].decode()
    shares[0].mark_dead("http-1")
    dead = two.render()[0].decode()
    registered(2, MultiprocessDirectory(str(tmp_path), "http-1")).request("native", "classify", "m", 200, 0.03)
    after = parent.render()[0].decode()

    answered = 'vim_requests_total{api="native",code="200",model="m",op="classify"}'
    assert [(2, 4, 3, 1), (2, 2, 0, 1), (3, 4, 0, 1)] == [
        tuple(
            sample(page, name)
            for name in (answered, "vim_queue_capacity", 'vim_queue_depth{class="bulk"}', 'vim_ready{model="m"}')
        )
        for page in (before, dead, after)
    ]
    assert 3 == sample(after, 'vim_request_duration_seconds_count{api="native",model="m",op="classify"}')
    assert series(after) == {name for name in series(alone) if not name.startswith("process_")}


def registered(queue_capacity: int, shared: MultiprocessDirectory | None = None) -> Metrics:
    """The metrics of a process that serves the model `m`."""
    metrics = Metrics(queue_capacity=queue_capacity, shared=shared)
    metrics.model("m")
    return metrics


def sample(page: str, name: str) -> float:
    """One value of a page, with its labels in any order; 0 where there is none."""
    wanted = next(iter(parse_text(f"{name} 0\n"))).samples[0]
    found = [one for family in parse_text(page) for one in family.samples]
    return next((one.value for one in found if (one.name, one.labels) == (wanted.name, wanted.labels)), 0)


def series(page: str) -> set[str]:
    """The names of all samples."""
    return {one.name for family in parse_text(page) for one in family.samples}
