"""With API keys every route except the probes requires one, and no key is logged or shown."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from service import api_keys
from service.api.auth import PROBES, admin_keys, is_admin, keys_in, known_keys
from service.app import create_app
from service.errors import SettingsError
from service.settings import Settings
from tests.service.conftest import running, settings_for
from tests.tiny import photo

KEY, OTHER, ADMIN = "first-key-of-the-test", "second-key-of-the-test", "admin-key-of-the-test"


@pytest.fixture(scope="module")
def closed(tiny_model: Path) -> FastAPI:
    """An application with two API keys and one of an administrator; it is not started."""
    return create_app(settings_for(tiny_model, api_keys=f"{KEY},{OTHER}", admin_keys=ADMIN))


def asking(app: FastAPI, **headers: str) -> httpx.AsyncClient:
    """A client that calls the application in this process."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://vim", headers=headers)


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """(method, path) of every route of the application."""
    for route in iter_route_contexts(app.routes):
        for method in route.methods or {"GET"}:
            yield method, str(route.path).replace("{", "").replace("}", "")


@pytest.mark.anyio
async def test_every_route_but_the_probes_is_denied_without_a_key(closed: FastAPI) -> None:
    """Without a valid key every path except the probes answers 401, also unknown paths."""
    every = [*routes(closed), ("GET", "/nowhere"), ("OPTIONS", "/v1/classify"), ("PUT", "/livez/"), ("GET", "//livez")]
    assert len(every) > 20
    for headers in ({}, {"Authorization": f"Bearer {KEY}x"}, {"X-API-Key": KEY[:-1]}, {"Authorization": KEY}):
        async with asking(closed, **headers) as client:
            answers = {(method, path): await client.request(method, path) for method, path in every}
        open_ones = {path for (_, path), answer in answers.items() if answer.status_code != 401}

        assert open_ones == PROBES
        refused = answers["POST", "/v1/classify"]
        assert ("unauthorized", "Bearer") == (refused.json()["code"], refused.headers["WWW-Authenticate"])


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path",
    ["/v1//info", "/%69nfo", "/info/", "/./info", "/livez/../info", "/livez%2f..%2finfo", "/livez;/info", "/INFO"],
)
async def test_no_spelling_of_a_path_gets_past_the_gate(closed: FastAPI, path: str) -> None:
    """A path that is not exactly that of a probe needs a key."""
    async with asking(closed) as client:
        assert 401 == (await client.get(httpx.URL("http://vim", raw_path=path.encode()))).status_code


@pytest.mark.anyio
async def test_a_websocket_is_closed_without_a_key(closed: FastAPI) -> None:
    """A WebSocket connection is closed without a key; other ASGI servers may open one."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/classify", "headers": [], "state": {}}
    await closed(scope, None, send)  # type: ignore[arg-type]

    assert [{"type": "websocket.close", "code": 1008}] == sent


@pytest.mark.anyio
@pytest.mark.parametrize("key", [KEY, OTHER, ADMIN])
async def test_either_key_opens_by_either_header(closed: FastAPI, key: str) -> None:
    """Each key, also an administrator's, is accepted in `Authorization: Bearer` and in `X-API-Key`."""
    for headers in ({"Authorization": f"Bearer {key}"}, {"authorization": f"bearer  {key}"}, {"X-API-Key": key}):
        async with asking(closed, **headers) as client:
            assert 200 == (await client.get("/metrics")).status_code


@pytest.mark.anyio
@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer placeholder-of-a-client", "X-API-Key": KEY},
        {"Authorization": f"Bearer {KEY}", "X-API-Key": "placeholder-of-a-client"},
        {"Authorization": "Basic Zm9vOmJhcg==", "X-API-Key": KEY},
    ],
)
async def test_one_right_key_is_enough(closed: FastAPI, headers: dict[str, str]) -> None:
    """Of two keys in both headers either may be the right one, and both are compared."""
    async with asking(closed, **headers) as client:
        assert 200 == (await client.get("/metrics")).status_code
    async with asking(closed, **dict.fromkeys(headers, "Bearer placeholder-of-a-client")) as client:
        assert 401 == (await client.get("/metrics")).status_code


@pytest.mark.anyio
async def test_an_image_is_answered_with_a_key_and_not_without(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused keys are counted, and no log line contains a key, valid or not."""
    app = create_app(settings_for(tiny_model, api_keys=KEY))
    with caplog.at_level(logging.DEBUG):
        async with running(app) as client:
            refused = await client.post("/v1/classify", content=photo(), headers={"X-API-Key": "wrong" * 5})
            good = await client.post("/v1/classify", content=photo(), headers={"X-API-Key": KEY})
            page = (await client.get("/metrics", headers={"X-API-Key": KEY})).text

    assert (401, 200) == (refused.status_code, good.status_code)
    assert 'vim_rejected_total{reason="unauthorized"} 1.0' in page
    assert KEY not in caplog.text
    assert "wrongwrong" not in caplog.text


@pytest.mark.anyio
async def test_without_keys_the_door_is_open(tiny_model: Path) -> None:
    """Without configured API keys no key is required, also if administrators have one."""
    for keys in ({}, {"admin_keys": ADMIN}):
        async with asking(create_app(settings_for(tiny_model, **keys))) as client:
            assert 200 == (await client.get("/metrics")).status_code


def test_keys_come_from_a_file_as_well(tmp_path: Path) -> None:
    """Keys come from a file, one per line with comments and empty lines, and from VIM_API_KEYS as well."""
    path = tmp_path / "keys"
    path.write_text(f"# of the web shop\n{KEY}\n\n")
    known = known_keys(Settings.load({"VIM_API_KEYS_FILE": str(path), "VIM_API_KEYS": OTHER}))

    assert [True, True, False] == [api_keys.admits(known, one.encode()) for one in (KEY, OTHER, KEY + "x")]


def test_keys_of_administrators_come_from_a_file_as_well(tmp_path: Path) -> None:
    """They are the administrators' keys and API keys; an API key is not an administrator's."""
    path = tmp_path / "keys"
    path.write_text(f"{ADMIN}\n")
    environ = {"VIM_ADMIN_KEYS_FILE": str(path), "VIM_ADMIN_KEYS": OTHER}

    assert () == known_keys(Settings.load(environ))
    settings = Settings.load(environ | {"VIM_API_KEYS": KEY})
    assert api_keys.digests([OTHER, ADMIN]) == admin_keys(settings)
    assert api_keys.digests([KEY, OTHER, ADMIN]) == known_keys(settings)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"x-api-key", ADMIN.encode())], True),
        ([(b"authorization", b"Bearer " + KEY.encode()), (b"x-api-key", ADMIN.encode())], True),
        ([(b"authorization", b"Bearer " + KEY.encode())], False),
        ([], False),
    ],
)
def test_an_administrator_is_known_by_the_key(headers: list[tuple[bytes, bytes]], expected: bool) -> None:
    """A request is an administrator's if one of its keys is; without such keys none is."""
    assert expected == is_admin({"headers": headers}, api_keys.digests([ADMIN]))
    assert not is_admin({"headers": headers}, ())


@pytest.mark.parametrize("name", ["VIM_API_KEYS_FILE", "VIM_ADMIN_KEYS_FILE"])
@pytest.mark.parametrize(
    "content", [None, "", "# nothing but a comment\n", "short\n", f"{KEY} {OTHER}\n", "schlüssel" * 3]
)
def test_a_file_without_keys_ends_the_start_up(tmp_path: Path, content: str | None, name: str) -> None:
    """A missing or invalid key file ends the start-up; the error names setting and file, not its content."""
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=f"{name}: {path}") as refused:
        known_keys(Settings.load({"VIM_API_KEYS": OTHER, name: str(path)}))

    assert not content or content.split()[0] == "#" or content.split()[0] not in str(refused.value)


@pytest.mark.parametrize("value", [b"Basic Zm9vOmJhcg==", b"", b"Bearer", b"\xff\xfe"])
def test_another_scheme_is_no_key(value: bytes) -> None:
    """An Authorization header with another scheme, or a malformed one, gives no valid key."""
    keys = keys_in({"headers": [(b"authorization", value)]})

    assert not [key for key in keys if api_keys.admits(api_keys.digests([KEY]), key)]


@pytest.mark.anyio
async def test_metrics_with_a_port_of_their_own_leave_the_main_port(tiny_model: Path, unused_port: int) -> None:
    """With VIM_METRICS_PORT, /metrics on the main port answers 404, also with a key."""
    app = create_app(settings_for(tiny_model, api_keys=KEY, metrics_port=unused_port))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://vim") as client:
        moved = await client.get("/metrics", headers={"X-API-Key": KEY})

    assert (404, "not_found") == (moved.status_code, moved.json()["code"])


@pytest.mark.anyio
async def test_pages_of_other_origins_may_ask_only_where_allowed(tiny_model: Path) -> None:
    """CORS is off by default; where it is on, a preflight needs no key, but the request does."""
    asks = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    given = {"api_keys": KEY, "cors_origins": "https://shop.example, https://other.example"}
    async with asking(create_app(settings_for(tiny_model, **given)), **asks) as client:
        preflight, refused = await client.options("/v1/classify"), await client.post("/v1/classify")
        foreign = await client.options("/v1/classify", headers={"Origin": "https://evil.example"})
    async with asking(create_app(settings_for(tiny_model)), **asks) as client:
        default = await client.options("/v1/classify")

    assert (200, "https://shop.example") == (preflight.status_code, preflight.headers["access-control-allow-origin"])
    assert (401, "https://shop.example") == (refused.status_code, refused.headers["access-control-allow-origin"])
    assert "access-control-allow-origin" not in foreign.headers
    assert "access-control-allow-origin" not in default.headers


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/livez", "/v1/classify", "/nowhere", "/", "/docs", "/docs/start.js"])
async def test_every_answer_has_the_headers_that_browsers_heed(closed: FastAPI, path: str) -> None:
    """Every answer has the security headers for browsers: no sniffing, no frames, a content policy."""
    async with asking(closed, **{"X-API-Key": KEY, "Accept": "text/html"}) as client:
        headers = (await client.get(path)).headers

    assert ("nosniff", "DENY") == (headers["X-Content-Type-Options"], headers["X-Frame-Options"])
    assert (
        "default-src 'none'" in headers["Content-Security-Policy"]
        or "default-src 'self'" in headers["Content-Security-Policy"]
    )
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "Cache-Control" in headers
    assert "Strict-Transport-Security" not in headers


@pytest.mark.anyio
async def test_the_documentation_loads_nothing_from_elsewhere(closed: FastAPI) -> None:
    """The documentation pages load their libraries from this server only."""
    async with asking(closed, **{"X-API-Key": KEY}) as client:
        for page, libraries in (("/docs", 3), ("/redoc", 1)):
            text = (await client.get(page)).text
            names = [part.split('"')[0] for part in text.split('"docs/')[1:]]
            answers = [await client.get(f"/docs/{name}") for name in names]

            assert "//" not in text
            assert libraries == len(names)
            assert all(answer.status_code == 200 and answer.content for answer in answers)
        assert 404 == (await client.get("/docs/core.py")).status_code
