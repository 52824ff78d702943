"""The metrics of one model: zeros from the start, no mixing of models, and one description at a time."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import values
from prometheus_client.parser import text_string_to_metric_families as parse_text

from service.jobs import Memory, RequestClass
from service.telemetry.definitions import METRICS, Load, Retry
from service.telemetry.metrics import Metrics
from service.telemetry.model_metrics import ModelMetrics
from service.telemetry.multiprocess import MultiprocessDirectory

OLD = {"family": "vim", "version": "aaa", "device": "cpu", "dtype": "float32"}
NEW = {"family": "mamba-reg", "version": "bbb", "device": "cuda:0", "dtype": "bfloat16"}


@pytest.fixture
def metrics() -> Metrics:
    """The metrics of a server with the models `a` and `b`."""
    metrics = Metrics(queue_capacity=256, apis=("native", "openai"), devices=("cuda:0",))
    metrics.model("a")
    metrics.model("b")
    return metrics


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MultiprocessDirectory:
    """A directory for the counters of several processes."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    return MultiprocessDirectory(str(tmp_path), "parent")


def series(metrics: Metrics, name: str, **wanted: str) -> list[float]:
    """The values of the samples with this name and these labels."""
    found = [one for family in parse_text(metrics.render()[0].decode()) for one in family.samples]
    return [float(one.value) for one in found if one.name == name and wanted.items() <= one.labels.items()]


def models(metrics: Metrics) -> set[str]:
    """Every value of the label `model` on the page."""
    found = [one for family in parse_text(metrics.render()[0].decode()) for one in family.samples]
    return {one.labels["model"] for one in found if "model" in one.labels}


def test_one_name_has_one_object(metrics: Metrics) -> None:
    """The metrics of a model are the same object however often they are asked for."""
    assert metrics.model("a") is metrics.model("a")
    assert metrics.model("a") is not metrics.model("b")
    assert metrics.levels is metrics.model("a").levels is metrics.model("b").levels


def test_a_registered_model_begins_at_zero(metrics: Metrics) -> None:
    """Every series of a model whose labels are known begins at zero; no series is of an unknown model."""
    for api in ("native", "openai"):
        assert [0] == series(metrics, "vim_request_duration_seconds_count", api=api, op="embed", model="b")
        assert [0] == series(metrics, "vim_requests_total", api=api, op="embed", model="b", code="500")
    for label, kind, name in (
        ("class", RequestClass, "vim_queue_wait_seconds_count"),
        ("reason", Retry, "vim_batch_retries_total"),
        ("outcome", Load, "vim_model_loads_total"),
        ("kind", Memory, "vim_device_memory_bytes"),
    ):
        for value in get_args(kind):
            assert [0] == series(metrics, name, model="b", **{label: value})
    for name in ("vim_device_up", "vim_device_lost_total"):
        assert [0] == series(metrics, name, model="b", device="cuda:0")
    for name in ("batches_total", "batch_size_count", "quarantined_images_total", "widened_images_total", "ready"):
        assert [0] == series(metrics, f"vim_{name}", model="b")
    assert [0] * 4 == series(metrics, "vim_images_total", model="b")
    assert {"a", "b"} == models(metrics)


def test_a_model_may_be_registered_later(metrics: Metrics) -> None:
    """A name counts as `other` until it is registered."""
    metrics.request("native", "embed", "c", 404, 0.001)
    metrics.model("c")
    metrics.request("native", "embed", "c", 200, 0.001)

    assert [1] == series(metrics, "vim_requests_total", model="other")
    assert [1] == series(metrics, "vim_requests_total", api="native", op="embed", model="c", code="200")


def test_names_of_clients_make_one_series_of_each_metric(metrics: Metrics) -> None:
    """Names that are not served share the series `other` of requests, and have no other series."""
    for attempt in range(20):
        metrics.request("native", "embed", f"model-{attempt}", 404, 0.001)

    assert {"a", "b", "other"} == models(metrics)
    assert [20] == series(metrics, "vim_requests_total", model="other")
    assert [20] == series(metrics, "vim_request_duration_seconds_count", model="other")
    assert [] == series(metrics, "vim_ready", model="other")


def test_a_batch_has_a_size_waits_and_a_duration(metrics: Metrics) -> None:
    """A batch is counted once, with its size, its duration and the wait of each image by class."""
    a = metrics.model("a")
    a.batch(["interactive", "interactive", "bulk"], [0.0, 0.001, 0.5], 0.2)
    a.batch(["interactive"], [0.0], 0.1)

    assert [2] == series(metrics, "vim_batches_total", model="a")
    assert [4] == series(metrics, "vim_batch_size_sum", model="a")
    assert [1] == series(metrics, "vim_batch_size_bucket", model="a", le="2.0")
    assert [3] == series(metrics, "vim_queue_wait_seconds_count", model="a", **{"class": "interactive"})
    assert [0.5] == series(metrics, "vim_queue_wait_seconds_sum", model="a", **{"class": "bulk"})
    assert [pytest.approx(0.3)] == series(metrics, "vim_stage_duration_seconds_sum", stage="infer")


def everything(model: ModelMetrics) -> None:
    """Count every event of a model once."""
    model.request("native", "embed", 200, 0.02)
    model.images("embed", "bulk", 3)
    model.batch(["bulk"], [0.1], 0.2)
    model.batch_limit("cuda:0", 8)
    model.batch_retried("error", 2)
    model.widened(1)
    model.quarantined()
    model.device_up("cuda:0", True)
    model.device_lost("cuda:0")
    model.device_memory("allocated", 1 << 30)
    model.ready(True)
    model.model_loaded(**OLD, seconds=2.5)
    model.load_failed()


def test_what_happens_to_one_model_is_not_counted_for_another(metrics: Metrics) -> None:
    """Every metric with the label `model` changes for the model that is meant, and for no other."""
    labelled = [one for one in METRICS if "model" in one.labels]
    names = [one.name + ("_sum" if one.kind == "histogram" else "") for one in labelled]
    everything(metrics.model("a"))

    assert [True] * len(names) == [sum(series(metrics, name, model="a")) > 0 for name in names]
    assert [0] * len(names) == [sum(series(metrics, name, model="b")) for name in names]


def test_a_model_is_described_once(metrics: Metrics) -> None:
    """A load replaces the description of its model, since two would double every join; others stay."""
    metrics.model("b").model_loaded(**OLD, seconds=1.0)
    for description, seconds in ((OLD, 2.5), (NEW, 3.5)):
        metrics.model("a").model_loaded(**description, seconds=seconds)

    assert [] == series(metrics, "vim_model_info", model="a", version="aaa")
    assert [1] == series(metrics, "vim_model_info", model="a", **NEW)
    assert [1] == series(metrics, "vim_model_info", model="b", **OLD)
    assert [3.5] == series(metrics, "vim_model_load_seconds", model="a")
    assert [2] == series(metrics, "vim_model_loads_total", model="a", outcome="loaded")


def test_the_same_model_may_be_loaded_again(metrics: Metrics) -> None:
    """A load of the same version keeps its description."""
    for _ in range(2):
        metrics.model("a").model_loaded(**OLD, seconds=1.0)

    assert [1] == series(metrics, "vim_model_info", model="a")


def test_with_several_processes_a_former_description_is_zero(shared: MultiprocessDirectory) -> None:
    """Files keep every series: what is served now is 1, and what was served before is 0, or 1 if it comes back."""
    metrics = Metrics(queue_capacity=4, shared=shared)
    shown = []
    for description in (OLD, NEW, OLD):
        metrics.model("a").model_loaded(**description, seconds=1.0)
        shown.append([series(metrics, "vim_model_info", version=version) for version in ("aaa", "bbb")])

    assert [[[1], []], [[0], [1]], [[1], [0]]] == shown


def test_processes_that_register_the_same_models_add_up(shared: MultiprocessDirectory) -> None:
    """The parent and the HTTP processes register the same names; the gauges of the parent are not changed by that."""
    parent = Metrics(queue_capacity=0, devices=("cpu",), shared=shared)
    everything(parent.model("a"))
    child = Metrics(queue_capacity=4, devices=("cpu",), shared=MultiprocessDirectory(shared.directory, "http-1"))
    child.model("a").images("embed", "bulk", 3)

    assert [1] == series(child, "vim_ready", model="a")
    assert [1] == series(child, "vim_model_info", model="a")
    assert [6] == series(child, "vim_images_total", model="a", op="embed", **{"class": "bulk"})


@pytest.mark.parametrize("name", ["vim_ready", "vim_device_up", "vim_batch_limit", "vim_model_info"])
def test_a_model_that_is_unloaded_is_no_longer_described(metrics: Metrics, name: str) -> None:
    """The gauges of an unloaded model disappear, so that no alert fires; its counters and other models stay."""
    for model in (metrics.model("a"), metrics.model("b")):
        model.ready(True)
        model.device_up("cuda:0", True)
        model.batch_limit("cuda:0", 8)
        model.model_loaded(family="vim", version="1", device="H200", dtype="float32", seconds=1.0)
    assert 1 == len(series(metrics, name, model="a"))
    metrics.model("a").unloaded()

    assert [] == series(metrics, name, model="a")
    assert 1 == len(series(metrics, name, model="b"))
    assert [1] == series(metrics, "vim_model_loads_total", model="a", outcome="loaded")
