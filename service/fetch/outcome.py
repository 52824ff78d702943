"""How a fetch can end, and the error of one that failed."""

from __future__ import annotations

from typing import Literal

Failure = Literal[
    "not_allowed",  # the URL, its host or one of the host's addresses
    "unreachable",  # no address, no connection, no valid certificate, or a broken response
    "bad_response",  # another status than 200, a Content-Encoding, or too many redirects
    "too_large",
    "timeout",
    "not_an_image",
]
Outcome = Literal["ok", Failure, "given_up"]  # given up: the request has ended before


class FetchError(Exception):
    """A URL could not be fetched. `reason` is for the log only: a client must not learn about other hosts."""

    def __init__(self, outcome: Failure, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason
