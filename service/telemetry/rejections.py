"""The reasons why work is refused or given up: the label of `vim_rejected_total`, and the reason of each error."""

from __future__ import annotations

from typing import Literal

Reason = Literal[
    "queue_full",
    "memory_full",
    "deadline",
    "too_large",
    "draining",
    "client_gone",
    "not_ready",
    "unsupported",
    "invalid",
    "unauthorized",
    "fetch_failed",
]

REASONS: dict[str, Reason] = {
    "queue_full": "queue_full",
    "memory_full": "memory_full",
    "deadline_exceeded": "deadline",
    "body_timeout": "deadline",
    "body_too_large": "too_large",
    "too_many_pixels": "too_large",
    "image_too_complex": "too_large",
    "too_many_images": "too_large",
    "draining": "draining",
    "not_ready": "not_ready",
    "unauthorized": "unauthorized",
    "unsupported_image": "unsupported",
    "empty_body": "invalid",
    "malformed_body": "invalid",
    "url_not_supported": "invalid",
    "unsupported_input": "invalid",
    "unsupported_encoding": "unsupported",
    "model_not_found": "invalid",
    "invalid_options": "invalid",
    "no_classifier": "invalid",
    "fetch_failed": "fetch_failed",
}
