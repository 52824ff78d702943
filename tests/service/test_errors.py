"""The error tree: statuses, codes, the body of an answer, and the header Retry-After."""

from __future__ import annotations

import json
import pickle
import re

import pytest

from service import errors
from service.errors import InvalidOptions, QueueFull, ServiceError, SettingsError, all_errors, headers, problem

STATUS = {
    "empty_body": 400,
    "malformed_body": 400,
    "url_not_supported": 400,
    "unsupported_input": 400,
    "load_failed": 400,
    "unauthorized": 401,
    "not_found": 404,
    "model_not_found": 404,
    "head_not_found": 404,
    "no_classifier": 404,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "body_too_large": 413,
    "too_many_pixels": 413,
    "image_too_complex": 413,
    "too_many_images": 413,
    "unsupported_image": 415,
    "unsupported_encoding": 415,
    "invalid_options": 422,
    "invalid_head": 422,
    "head_mismatch": 422,
    "fetch_failed": 422,
    "queue_full": 429,
    "memory_full": 429,
    "inference_failed": 500,
    "non_finite_output": 500,
    "internal_error": 500,
    "out_of_memory": 503,
    "not_ready": 503,
    "draining": 503,
    "deadline_exceeded": 504,
}


def test_every_leaf_has_its_status_and_code() -> None:
    """Every error has its documented status and code, on which clients depend."""
    assert {error.code: error.status for error in all_errors()} == STATUS


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.code)
def test_the_tree_in_the_docstring_is_the_tree(error: type[ServiceError]) -> None:
    """The docstring of the module shows every error with its status and code."""
    assert re.search(rf" {error.__name__} +{error.status} {error.code}$", errors.__doc__ or "", re.MULTILINE)
    assert error.__doc__


def test_a_subclass_made_elsewhere_is_not_documented() -> None:
    """The list of errors has only those of this module, not subclasses from elsewhere."""

    class Elsewhere(QueueFull):
        """An error of another module."""

    assert Elsewhere not in all_errors()
    assert QueueFull in all_errors()


def test_the_body_speaks_to_problem_readers_and_to_error_readers() -> None:
    """The body has the members of RFC 9457 and `error` as a text."""
    body = problem(QueueFull("queue full (256 waiting)"), instance="/v1/classify", request_id="abc")

    assert body == {
        "type": "urn:problem-type:vim-server:queue_full",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "queue full (256 waiting)",
        "instance": "/v1/classify",
        "error": "queue full (256 waiting)",
        "message": "queue full (256 waiting)",
        "code": "queue_full",
        "request_id": "abc",
    }


def test_optional_members_appear_only_when_set() -> None:
    """`errors` and `retry_after_s` are absent when they are not set."""
    wrong = [{"loc": ["query", "top_k"], "msg": "must be at least 1"}]
    body = problem(InvalidOptions("top_k: must be at least 1", errors=wrong), instance="/", request_id="x")
    late = problem(QueueFull("full", retry_after_s=0.25), instance="/", request_id="x")

    assert body["errors"] == wrong
    assert "retry_after_s" not in body
    assert late["retry_after_s"] == 0.25
    assert "errors" not in late
    assert json.loads(json.dumps(body)) == body


@pytest.mark.parametrize(("seconds", "value"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (30, "30")])
def test_retry_after_is_a_whole_number_of_at_least_one(seconds: float, value: str) -> None:
    """Retry-After is a whole number of seconds, at least 1."""
    assert headers(QueueFull("full", retry_after_s=seconds)) == {"Retry-After": value}


def test_no_retry_after_unless_set() -> None:
    """An error without a retry time has no Retry-After."""
    assert headers(QueueFull("full")) == {}


def test_errors_survive_pickling() -> None:
    """Errors keep their detail and retry time when they are pickled."""
    copy = pickle.loads(pickle.dumps(QueueFull("full", retry_after_s=2)))

    assert type(copy) is QueueFull
    assert (copy.detail, copy.retry_after_s, str(copy)) == ("full", 2, "full")


def test_settings_errors_never_reach_a_client() -> None:
    """SettingsError is not a ServiceError, so it cannot become an answer."""
    assert not issubclass(SettingsError, ServiceError)
