"""Endpoints that read the request themselves are called directly; FastAPI handles all others."""

from __future__ import annotations

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel
from starlette.responses import Response

from service.api.middleware import RouteLabels
from service.api.record import Labels, labelled
from service.api.routing import DirectRoute
from service.app import CONTRACTS

pytestmark = pytest.mark.anyio


class Documented(BaseModel):
    """The response model of the test's endpoints."""

    number: int


def application() -> FastAPI:
    """An application with a direct endpoint and an ordinary one."""
    router = APIRouter(route_class=DirectRoute)

    @router.post("/direct", response_model=Documented)
    async def direct(request: Request) -> Response:
        return Response(await request.body())

    @router.get("/named/{one}/{two}", response_model=Documented)
    async def named(request: Request, two: str) -> Response:
        return Response(two + request.path_params["one"])

    @router.get("/parsed/{number}")
    async def parsed(request: Request, number: int) -> Documented:
        return Documented(number=number)

    app = FastAPI()
    app.include_router(router)
    return app


async def test_a_direct_endpoint_is_neither_parsed_nor_validated() -> None:
    """The response of a direct endpoint is sent unchanged and documented; FastAPI handles other endpoints."""
    app = application()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        direct = await client.post("/direct", content=b"no JSON")
        named = await client.get("/named/a/b%20c")
        parsed = await client.get("/parsed/7")
        wrong = await client.get("/parsed/seven")

    assert b"no JSON" == direct.content
    assert "b ca" == named.text
    assert {"number": 7} == parsed.json()
    assert 422 == wrong.status_code
    assert "Documented" in str(app.openapi()["paths"]["/direct"])


def test_labels_stand_at_the_route() -> None:
    """A decorated endpoint has its labels, and an endpoint without the decorator has none."""
    router = APIRouter(prefix="/v9")

    @router.post("/images")
    @labelled("native", "embed")
    async def images() -> None: ...

    @router.post("/models/{model}/infer")
    @labelled("oip", "classify")
    async def infer(model: str) -> None: ...

    @router.post("/others")
    async def others() -> None: ...

    labels = RouteLabels([router])

    assert {"/v9/images": Labels("native", "embed")} == labels.exact
    assert [Labels("oip", "classify")] == [
        found for pattern, found in labels.patterns if pattern.match("/v9/models/m/infer")
    ]
    assert ["native", "oip"] == labels.apis


def test_every_contract_that_answers_images_has_labels() -> None:
    """Each of the contracts that process images has labels."""
    assert ["huggingface", "native", "oip", "openai", "weaviate"] == RouteLabels(CONTRACTS).apis
