"""The routes of the demo page: the answers of `/`, and that no other files can be read."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service.api.demo_page import PAGE, digest
from service.app import create_app
from tests.service.conftest import running, settings_for

pytestmark = pytest.mark.anyio

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


async def test_a_browser_gets_the_page_and_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    """A browser gets the page, with a policy that allows content from this server, and pictures of its own."""
    answer = await client.get("/", headers=HTML)

    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"] == (
        "default-src 'self'; img-src 'self' blob: data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
    )
    assert "Accept" in answer.headers["vary"]


async def test_every_file_that_the_page_names_is_served(client: httpx.AsyncClient) -> None:
    """Every file that the page refers to is served to be kept for a year, and scripts have a JavaScript type."""
    html = (await client.get("/", headers=HTML)).text
    named = re.findall(r'(?:src|href)="(page/[^"]+)"', html)
    imported = {
        f"page/{digest()}/{name}"
        for file in PAGE.glob("*.js")
        for name in re.findall(r'from "\./(.+)"', file.read_text())
    }
    for path in {*named, *imported}:
        answer = await client.get(f"/{path}")
        assert 200 == answer.status_code, path
        assert "max-age=31536000, immutable" == answer.headers["Cache-Control"]
        if path.endswith(".js"):
            assert "javascript" in answer.headers["content-type"]
    assert imported <= {*named}, "the page preloads every module, so that none waits for another"


async def test_a_file_of_another_version_is_not_kept(client: httpx.AsyncClient) -> None:
    """A page of another version gets the file that this server has, and asks again the next time."""
    answer = await client.get("/page/0123456789abcdef/app.js")

    assert (200, "no-cache") == (answer.status_code, answer.headers["Cache-Control"])


async def test_the_page_is_small() -> None:
    """The files of the page have at most 200 kB together, before compression."""
    assert 200_000 >= sum(path.stat().st_size for path in PAGE.iterdir())


async def test_the_page_names_no_other_host_and_no_inline_code() -> None:
    """The page refers to no other host and has no inline scripts or styles, which its policy would block."""
    for file in PAGE.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")  # the name of a format
        assert not re.search(r"""(src|href|from|fetch\()\s*=?\s*["']https?://""", text), file.name
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", html)


async def test_other_clients_get_json(client: httpx.AsyncClient) -> None:
    """A client that does not ask for HTML, such as curl, gets the JSON index."""
    answer = await client.get("/", headers={"Accept": "*/*"})

    assert "/v1/classify" == answer.json()["classify"]
    assert "tiny" == answer.json()["model"]


@pytest.mark.parametrize("name", ["../app.py", "..%2fapp.py", "%2e%2e/settings.py", "missing.js", ".hidden"])
async def test_only_the_pages_own_files_are_served(client: httpx.AsyncClient, name: str) -> None:
    """Paths that point outside the folders of page and samples answer 404."""
    for folder in ("page", f"page/{digest()}", "samples"):
        assert 404 == (await client.get(f"/{folder}/{name}")).status_code


async def test_samples_are_listed_with_label_source_and_licence(client: httpx.AsyncClient) -> None:
    """Every sample is listed with its label, source and licence, and can be downloaded."""
    samples = (await client.get("/samples")).json()

    assert 6 <= len(samples) <= 10
    for one in samples:
        assert {"file", "label", "source", "licence"} <= one.keys()
        assert (await client.get(f"/samples/{one['file']}")).headers["content-type"].startswith("image/")


@pytest.mark.parametrize("path", ["/", f"/page/{digest()}/app.js", "/samples/{sample}", "/docs/swagger-ui.css"])
async def test_what_a_browser_has_is_not_sent_again(client: httpx.AsyncClient, path: str) -> None:
    """A file that the browser has already gets 304 without content; other tags get the file."""
    path = path.format(sample=(await client.get("/samples")).json()[0]["file"])
    first = await client.get(path, headers=HTML)
    tag = first.headers["ETag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = await client.get(path, headers=HTML | {"If-None-Match": known})
        assert (304, b"", tag) == (again.status_code, again.content, again.headers["ETag"])
        assert first.headers["Cache-Control"] == again.headers["Cache-Control"]
        assert first.headers["Content-Security-Policy"] == again.headers["Content-Security-Policy"]

    for other in ('"other"', tag.strip('"'), ""):
        again = await client.get(path, headers=HTML | {"If-None-Match": other})
        assert (200, first.content) == (again.status_code, again.content)


async def test_texts_are_compressed_for_clients_that_take_it(client: httpx.AsyncClient) -> None:
    """Scripts and styles are sent with gzip if the client accepts it; images, already compressed, are not."""
    sample = (await client.get("/samples")).json()[0]["file"]
    for path, packed in (
        (f"/page/{digest()}/app.js", True),
        ("/docs/swagger-ui.css", True),
        (f"/samples/{sample}", False),
    ):
        plain = await client.get(path, headers={"Accept-Encoding": "identity"})
        small = await client.get(path, headers={"Accept-Encoding": "br, GZIP;q=0.5"})
        refused = await client.get(path, headers={"Accept-Encoding": "gzip;q=0"})

        assert packed == (small.headers.get("Content-Encoding") == "gzip")
        assert packed == ("Accept-Encoding" in small.headers.get("Vary", ""))
        assert packed == (int(small.headers["Content-Length"]) < int(plain.headers["Content-Length"]))
        assert packed == (small.headers["ETag"] != plain.headers["ETag"])
        assert plain.content == small.content == refused.content
        assert "Content-Encoding" not in refused.headers


async def test_the_page_is_for_clients_that_prefer_html(client: httpx.AsyncClient) -> None:
    """The quality of HTML decides, not whether the header names it."""
    for accept, page in (
        ("TEXT/HTML", True),
        ("text/html;q=0, */*", False),
        ("application/json, text/html;q=0.1", False),
    ):
        answer = await client.get("/", headers={"Accept": accept})
        assert page == answer.headers["Content-Type"].startswith("text/html")


async def test_it_can_be_switched_off(tiny_model: Path) -> None:
    """With VIM_PAGE off, browsers get the JSON index, and the files of the page answer 404."""
    app: FastAPI = create_app(settings_for(tiny_model, page=False))
    async with running(app) as client:
        assert "application/json" == (await client.get("/", headers=HTML)).headers["content-type"]
        for path in (f"/page/{digest()}/app.js", "/samples"):
            assert 404 == (await client.get(path)).status_code
