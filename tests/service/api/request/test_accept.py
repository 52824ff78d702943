"""Which format an Accept header prefers."""

from __future__ import annotations

import pytest

from service.api.request.accept import prefers

OCTETS, JSON = "application/octet-stream", "application/json"


@pytest.mark.parametrize(
    ("accept", "octets"),
    [
        ("", False),
        ("*/*", False),
        ("application/*", False),
        (OCTETS, True),
        ("Application/OCTET-Stream", True),
        (f"{JSON}, {OCTETS};q=0.1", False),
        (f"{JSON};q=0.5, {OCTETS}", True),
        (f"{OCTETS};q=0", False),
        (f"{OCTETS};q=0, */*", False),
        (f"{OCTETS} ; Q=0.8 , {JSON};q=0.9", False),
        (f"{OCTETS}, {JSON}", True),
        (f"{OCTETS};q=0.9, */*;q=0.8", True),
        (f"{OCTETS};q=0.5, application/*", False),
        (f"{OCTETS};version=1;q=0.001", True),
        (f"{OCTETS};q=high", False),
        (f"{OCTETS};q=2", False),
        (f"x{OCTETS}", False),
        (";;,,q=", False),
    ],
)
def test_the_higher_quality_wins(accept: str, octets: bool) -> None:
    """A format is chosen if it is named and no other has a higher quality; q=0 excludes it, and case is ignored."""
    assert octets == prefers(accept, OCTETS, JSON)
