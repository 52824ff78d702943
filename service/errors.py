"""The errors that a client can get: a tree of exceptions, each leaf with its HTTP status and stable code.

They are raised where the cause is known; `problem` and `headers` translate them to HTTP, for any web framework.

ServiceError
 ├── RequestError                the client must change the request
 │    ├── EmptyBody              400 empty_body
 │    ├── MalformedBody          400 malformed_body
 │    ├── UrlNotSupported        400 url_not_supported
 │    ├── UnsupportedInput       400 unsupported_input
 │    ├── LoadFailed             400 load_failed
 │    ├── Unauthorized           401 unauthorized
 │    ├── NotFound               404 not_found
 │    ├── UnknownModel           404 model_not_found
 │    ├── UnknownHead            404 head_not_found
 │    ├── NoClassifier           404 no_classifier
 │    ├── MethodNotAllowed       405 method_not_allowed
 │    ├── BodyTimeout            408 body_timeout
 │    ├── BodyTooLarge           413 body_too_large
 │    ├── TooManyPixels          413 too_many_pixels
 │    ├── ImageTooComplex        413 image_too_complex
 │    ├── TooManyImages          413 too_many_images
 │    ├── UnsupportedImage       415 unsupported_image
 │    ├── UnsupportedEncoding    415 unsupported_encoding
 │    ├── InvalidOptions         422 invalid_options
 │    ├── InvalidHead            422 invalid_head
 │    ├── HeadMismatch           422 head_mismatch
 │    └── FetchFailed            422 fetch_failed
 ├── Refusal                     the same request may succeed later
 │    ├── Overload               429 or 503, as VIM_OVERLOAD_STATUS says
 │    │    ├── QueueFull         429 queue_full
 │    │    └── MemoryFull        429 memory_full
 │    ├── OutOfMemory            503 out_of_memory
 │    ├── NotReady               503 not_ready
 │    ├── Draining               503 draining
 │    └── DeadlineExceeded       504 deadline_exceeded
 └── Failure                     the fault of the service; the log has the details
      ├── InferenceFailed        500 inference_failed
      ├── NonFiniteOutput        500 non_finite_output
      └── InternalError          500 internal_error

SettingsError is not part of the tree: it ends the start-up and never reaches a client.
"""

# ruff: noqa: N818 - the names are shorter without Error
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar, Self, TypeVar

E = TypeVar("E", bound=BaseException)

_TYPE = "urn:problem-type:vim-server:"


class ServiceError(Exception):
    """An error that a client gets instead of a result. `detail` is shown to the client: no paths, no internals."""

    status: int
    code: ClassVar[str]

    def __init__(
        self, detail: str, *, retry_after_s: float | None = None, errors: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.errors = tuple(errors)  # {"loc", "msg"} of each wrong option
        self.results: Sequence[Mapping[str, Any]] = ()  # when several images have all failed, the error of each

    def about(self, subject: str) -> Self:
        """The same error, with the subject before its detail."""
        return type(self)(f"{subject}: {self.detail}", retry_after_s=self.retry_after_s, errors=self.errors)

    def with_items(self, results: Sequence[Mapping[str, Any]]) -> Self:
        """The same error, with the errors of all images."""
        copy = type(self)(self.detail, retry_after_s=self.retry_after_s, errors=self.errors)
        copy.results = results
        return copy


class RequestError(ServiceError):
    """The client must change the request."""


class Refusal(ServiceError):
    """The same request may succeed later."""


class Failure(ServiceError):
    """The service is at fault."""


class EmptyBody(RequestError):
    """The body, or one of its images, has no bytes."""

    status, code = 400, "empty_body"


class MalformedBody(RequestError):
    """The body does not match its media type: broken JSON, base64 or multipart."""

    status, code = 400, "malformed_body"


class UrlNotSupported(RequestError):
    """An image was given by a URL that is not fetched: `VIM_FETCH_HOSTS` is unset, or the URL is not http or https."""

    status, code = 400, "url_not_supported"


class UnsupportedInput(RequestError):
    """The request is well formed, but the model does not support it: text, floating-point pixels, a dimension."""

    status, code = 400, "unsupported_input"


class LoadFailed(RequestError):
    """A model could not be loaded; what was served before is still served."""

    status, code = 400, "load_failed"


class Unauthorized(RequestError):
    """The path requires an API key (`VIM_API_KEYS`) or that of an administrator (`VIM_ADMIN_KEYS`); none was valid."""

    status, code = 401, "unauthorized"


class NotFound(RequestError):
    """No such path."""

    status, code = 404, "not_found"


class UnknownModel(RequestError):
    """The request names a model, or a version of it, that is not served here."""

    status, code = 404, "model_not_found"


class UnknownHead(RequestError):
    """The request names a custom head that this server does not have."""

    status, code = 404, "head_not_found"


class NoClassifier(RequestError):
    """The model has no classification head; it can only embed."""

    status, code = 404, "no_classifier"


class MethodNotAllowed(RequestError):
    """The path exists, but not for this HTTP method."""

    status, code = 405, "method_not_allowed"


class BodyTimeout(RequestError):
    """The body did not arrive within `VIM_BODY_TIMEOUT_MS`."""

    status, code = 408, "body_timeout"


class BodyTooLarge(RequestError):
    """The body exceeds `VIM_MAX_BODY_BYTES`, or its JSON holds too many values."""

    status, code = 413, "body_too_large"


class TooManyPixels(RequestError):
    """An image's width times height exceeds `VIM_MAX_PIXELS`; refused before decoding."""

    status, code = 413, "too_many_pixels"


class ImageTooComplex(RequestError):
    """An image has so many scans, strips or chunks, or needs so much memory (`VIM_MAX_DECODE_BYTES`), that decoding it
    would take too much time or memory; refused before decoding.
    """

    status, code = 413, "image_too_complex"


class TooManyImages(RequestError):
    """The request holds more images than can ever be queued."""

    status, code = 413, "too_many_images"


class UnsupportedImage(RequestError):
    """The bytes are not an image of an accepted format, or the image is damaged."""

    status, code = 415, "unsupported_image"


class UnsupportedEncoding(RequestError):
    """The body's `Content-Encoding` is neither gzip nor deflate."""

    status, code = 415, "unsupported_encoding"


class InvalidOptions(RequestError):
    """An option is unknown, out of range or given twice."""

    status, code = 422, "invalid_options"


class InvalidHead(RequestError):
    """The file of a custom head is damaged, incomplete or too large."""

    status, code = 422, "invalid_head"


class HeadMismatch(RequestError):
    """The custom head was taught with another model than the one that is asked."""

    status, code = 422, "head_mismatch"


class FetchFailed(RequestError):
    """An image could not be fetched from its URL. All causes give the same answer; the log has the reason."""

    status, code = 422, "fetch_failed"


class Overload(Refusal):
    """Too many requests arrive. The status is `VIM_OVERLOAD_STATUS`, 429 by default."""


class QueueFull(Overload):
    """As many images are waiting as `VIM_QUEUE_IMAGES` allows, or for bulk `VIM_BULK_PERCENT` of them."""

    status, code = 429, "queue_full"


class MemoryFull(Overload):
    """Bodies and fetched images have as many bytes as `VIM_QUEUE_BYTES` allows, or for bulk a part of it."""

    status, code = 429, "memory_full"


class NotReady(Refusal):
    """The model is not loaded yet, or no longer served."""

    status, code = 503, "not_ready"


class OutOfMemory(Refusal):
    """The process got no memory from the operating system for this image or request; the log says how much."""

    status, code = 503, "out_of_memory"


class Draining(Refusal):
    """The server is shutting down and accepts no new work."""

    status, code = 503, "draining"


class DeadlineExceeded(Refusal):
    """The answer was not ready within `X-Request-Timeout-Ms` or `VIM_REQUEST_TIMEOUT_MS`."""

    status, code = 504, "deadline_exceeded"


class InferenceFailed(Failure):
    """The device could not compute this request."""

    status, code = 500, "inference_failed"


class NonFiniteOutput(Failure):
    """The model's output for this image holds NaN or infinity."""

    status, code = 500, "non_finite_output"


class InternalError(Failure):
    """An unforeseen error; the log has the cause under the request id."""

    status, code = 500, "internal_error"


class SettingsError(Exception):
    """The environment has invalid settings; the message has one line for each mistake."""


def bare(error: E) -> E:
    """The same error without its traceback and causes, whose frames hold the body of the request.

    Usually those frames also refer to the error, by an outcome or by the future that brought it from a thread. The body
    would stay in memory until Python collects such cycles, which depends on the number of objects, not on their size.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__, link = None, link.__cause__ or link.__context__
    error.__cause__ = error.__context__ = None
    return error


def all_errors() -> list[type[ServiceError]]:
    """Every error that a client can get, by status, for the documentation."""
    return sorted(_leaves(ServiceError), key=lambda error: error.status)


def problem(error: ServiceError, *, instance: str, request_id: str) -> dict[str, Any]:
    """The body of the answer: the members of RFC 9457, and `error` and `message` for clients that read those.

    `instance` is the path of the request.
    """
    body: dict[str, Any] = {
        "type": _TYPE + error.code,
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.detail,
        "instance": instance,
        "error": error.detail,
        "message": error.detail,
        "code": error.code,
        "request_id": request_id,
    }
    if error.retry_after_s is not None:
        body["retry_after_s"] = error.retry_after_s
    if error.errors:
        body["errors"] = [dict(item) for item in error.errors]
    if error.results:
        body["results"] = [dict(item) for item in error.results]
    return body


def headers(error: ServiceError) -> dict[str, str]:
    """Extra headers of the answer: `Retry-After` in whole seconds, at least 1, and `WWW-Authenticate` for a key."""
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    if error.retry_after_s is None:
        return {}
    return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}


def _leaves(error: type[ServiceError]) -> Iterator[type[ServiceError]]:
    children = [child for child in error.__subclasses__() if child.__module__ == __name__]
    if not children:
        yield error
    for child in children:
        yield from _leaves(child)
