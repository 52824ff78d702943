"""Identical images that are sent at the same time are computed once, and every request gets the result."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.e2e.traffic import samples
from tests.tiny import photo

pytestmark = pytest.mark.anyio

COUNT = 12


async def test_identical_images_at_once_are_computed_once(client: httpx.AsyncClient) -> None:
    """Each identical image either ran or joined another one, and all answers equal that of the image alone."""
    alone = (await client.post("/v1/classify", content=photo(31))).json()["results"]
    before = await samples(client)
    answers = await asyncio.gather(*(client.post("/v1/classify", content=photo(31)) for _ in range(COUNT)))
    after = await samples(client)
    ran, joined = (
        after[name] - before[name] for name in ('vim_batch_size_sum{model="tiny"}', "vim_joined_images_total")
    )

    assert COUNT == ran + joined
    assert joined > 0
    for answer in answers:
        (found,), (expected,) = answer.json()["results"], alone
        assert [p["label"] for p in expected["predictions"]] == [p["label"] for p in found["predictions"]]
        assert expected["predictions"][0]["score"] == pytest.approx(found["predictions"][0]["score"], abs=1e-5)
        timings = answer.json()["timings_ms"]
        assert timings["queue"] + timings["infer"] <= timings["total"] + 0.01


async def test_what_differs_is_computed_apart(client: httpx.AsyncClient) -> None:
    """Different images, and one image for different tasks, are computed separately."""
    calls = [
        client.post("/v1/classify", content=photo(32)),
        client.post("/v1/embed?normalize=false", content=photo(32)),
        client.post("/v1/embed?normalize=false&pooling=mean", content=photo(32)),
        client.post("/v1/embed?normalize=false", content=photo(33)),
    ]
    before = await samples(client)
    answers = await asyncio.gather(*calls)
    after = await samples(client)
    vectors = [tuple(answer.json()["results"][0]["embedding"]) for answer in answers[1:]]

    assert 0 == after["vim_joined_images_total"] - before["vim_joined_images_total"]
    assert 3 == len(set(vectors))


async def test_an_error_is_everyones_own(client: httpx.AsyncClient) -> None:
    """A damaged image that is sent several times at once gets its error in each place."""
    bad = photo(34)[:400]
    both = client.post("/v1/classify", files=[("image", bad), ("image", bad), ("image", photo(34))])
    one, several = await asyncio.gather(client.post("/v1/classify", content=bad), both)
    results = several.json()["results"]

    assert (415, "unsupported_image") == (one.status_code, one.json()["code"])
    assert ["unsupported_image"] * 2 == [item["error"]["code"] for item in results[:2]]
    assert "predictions" in results[2]
