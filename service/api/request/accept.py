"""Which of two formats a client prefers, by the qualities in its `Accept` header (RFC 9110)."""

from __future__ import annotations

import re

_QUALITY = re.compile(r"(0(\.\d{0,3})?|1(\.0{0,3})?)", re.ASCII)


def prefers(accept: str, wanted: str, default: str) -> bool:
    """Return whether `wanted` is named in the header and has at least the quality of `default`."""
    qualities = dict(_quality(part) for part in accept.lower().split(","))
    ranges = (default, default.partition("/")[0] + "/*", "*/*")
    of_default = next((qualities[one] for one in ranges if one in qualities), 0.0)
    return 0 < qualities.get(wanted, 0) >= of_default


def _quality(part: str) -> tuple[str, float]:
    """A media range and its quality: 1 if none is given, 0 if it is malformed."""
    media_range, *parameters = (one.strip() for one in part.split(";"))
    for one in parameters:
        name, _, value = one.partition("=")
        if name.strip() == "q":
            found = _QUALITY.fullmatch(value.strip())
            return media_range, float(found[0]) if found else 0.0
    return media_range, 1.0
