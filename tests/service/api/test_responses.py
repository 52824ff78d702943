"""Results are rendered as the documented response bodies."""

from __future__ import annotations

import dataclasses
import gc
import json
import sys

import numpy as np
import pytest

from service.api import responses
from service.api.schemas import ClassifyOptions, EmbedOptions
from service.engine.engine import Answer
from service.errors import TooManyPixels, UnsupportedImage
from service.jobs import Outcome, Result, Timings
from service.telemetry.metrics import Metrics
from tests.service.devices.scripted_devices import model_info

LABELS = ("a", "b", "c")
METRICS = Metrics(queue_capacity=1)


def result(*values: float) -> Result:
    """A result with these values."""
    return Result(np.array(values, np.float32), 0.001, 0.002, 1)


def answer_of(*outcomes: Outcome) -> Answer:
    """The answer of a request with these outcomes."""
    return Answer(list(outcomes), Timings(), dataclasses.replace(model_info(), labels=LABELS), "1", 0, [])


def test_top_k_is_sorted_and_clamped() -> None:
    """The best classes come first, and a `k` above the number of classes gives all of them."""
    found = responses.top_k(np.array([0.2, 0.5, 0.3], np.float32), 9, LABELS)

    assert ["b", "c", "a"] == [one["label"] for one in found]
    assert [1, 2, 0] == [one["index"] for one in found]


def test_ties_are_broken_by_index() -> None:
    """Classes with equal scores are in the order of their index."""
    assert [0, 1, 2] == [one["index"] for one in responses.top_k(np.ones(3, np.float32), 3, LABELS)]


def test_normalised_has_unit_length_and_leaves_zero_alone() -> None:
    """A normalised vector has length 1, and a zero vector stays zero."""
    assert 1 == pytest.approx(float(np.linalg.norm(responses.normalised(np.array([3, 4], np.float32)))))
    np.testing.assert_array_equal(responses.normalised(np.zeros(2, np.float32)), np.zeros(2))


def test_an_embedding_says_what_it_is() -> None:
    """An embedding has its dimension, pooling and normalisation, and its numbers are short float32."""
    item = responses.embedding(0, result(0.1, 0.2), EmbedOptions(pooling="mean", normalize=False))
    body = json.loads(bytes(responses.JsonResponse(item).body))

    assert {
        "index": 0,
        "embedding": [0.1, 0.2],
        "dim": 2,
        "pooling": "mean",
        "normalized": False,
        "crop": "center",
    } == body


@pytest.mark.parametrize("form", ["float", "base64", "octets"])
def test_no_work_in_python_grows_with_the_length_of_embeddings(form: str) -> None:
    """Rendering makes as many calls for embeddings of 4,096 numbers as for embeddings of 8."""
    assert calls_to_render(form, 8) == calls_to_render(form, 4096)


def calls_to_render(form: str, dim: int) -> int:
    """The number of Python and C functions that are called to render 64 images."""
    rows = np.random.default_rng(0).standard_normal((64, dim)).astype(np.float32)
    answer = answer_of(*[Result(row, 0.0, 0.0, 64) for row in rows])
    events: list[str] = []
    gc.collect()
    gc.disable()  # garbage of other tests would be counted when it is collected
    sys.setprofile(lambda _frame, event, _argument: events.append(event))
    try:
        if form == "octets":
            responses.raw_embeddings(answer, EmbedOptions())
        else:
            responses.embeddings(answer, EmbedOptions.model_validate({"encoding": form}), METRICS)
    finally:
        sys.setprofile(None)
        gc.enable()
    return sum(event in ("call", "c_call") for event in events)


def test_one_bad_image_of_several_keeps_its_place() -> None:
    """A bad image has its error in its place, and the others have their results."""
    answer = answer_of(result(1, 0, 0), UnsupportedImage("no image"))
    body = json.loads(bytes(responses.classifications(answer, [], ClassifyOptions(top_k=1), METRICS).body))

    assert {"code": "unsupported_image", "message": "no image", "status": 415} == body["results"][1]["error"]
    assert "a" == body["results"][0]["predictions"][0]["label"]


def test_all_bad_is_the_first_error() -> None:
    """If all images fail, the first error is raised."""
    with pytest.raises(TooManyPixels):
        responses.classifications(
            answer_of(TooManyPixels("big"), UnsupportedImage("no")), [], ClassifyOptions(), METRICS
        )


def test_timings_are_milliseconds_by_stage() -> None:
    """Timings are given in milliseconds by stage, with the batch size."""
    found = responses.timings_ms(Timings(0.0012, 0.0003, 0.0001, 0.02, 0.025, 4))

    assert {"decode": 1.2, "preprocess": 0.3, "queue": 0.1, "infer": 20.0, "total": 25.0, "batch_size": 4} == found
