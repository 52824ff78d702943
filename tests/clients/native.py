"""Requests to the native endpoints with the standard library; answers of all clients are compared with them."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

TOLERANCE = 1e-6


def post(url: str, body: bytes) -> Any:
    """Send bytes by POST and return the JSON of the answer."""
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as answer:
        return json.load(answer)


def embedding(url: str, image: bytes) -> list[float]:
    """The embedding that /v1/embed answers for an image."""
    found: list[float] = post(f"{url}/v1/embed", image)["results"][0]["embedding"]
    return found


def classes(url: str, image: bytes, k: int = 5) -> list[tuple[str, float]]:
    """Labels and scores by /v1/classify, best first."""
    results = post(f"{url}/v1/classify?top_k={k}", image)["results"]
    return [(one["label"], one["score"]) for one in results[0]["predictions"]]


def metric(url: str, series: str) -> float:
    """One series of /metrics; 0 where it is not there."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(series))
