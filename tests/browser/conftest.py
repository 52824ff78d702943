"""A real server with the demo model and Debian's Chromium, headless; skipped where either half is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import Server, serving
from tests.tiny import photo, write_tiny_model

CHROMIUM = shutil.which("chromium")
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model, served as `make serve` does."""
    with serving(tmp_path_factory.mktemp("page")) as server:
        yield server


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two models: the demo model, which is the default, and "tiny"."""
    directory = tmp_path_factory.mktemp("several")
    with serving(directory, models=f"demo=demo,tiny={write_tiny_model(directory / 'tiny')}") as server:
        server.wait_for(lambda: ["ready"] * 2 == [one["state"] for one in server.info()["models"]])
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright, whose event loop must be over before other modules start theirs."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install '.[browser]'")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The page, freshly opened."""
    with opened(browser, server) as page:
        yield page


@pytest.fixture
def page_of_several(browser: Any, several: Server) -> Iterator[Any]:
    """The page of a server with two models."""
    with opened(browser, several) as page:
        yield page


@contextmanager
def opened(browser: Any, server: Server) -> Iterator[Any]:
    """Open the page; fails the test when a script failed or the policy blocked something."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    mistakes: list[str] = []
    page.on("pageerror", lambda error: mistakes.append(str(error)))
    page.on("console", lambda line: mistakes.append(line.text) if "Content Security Policy" in line.text else None)
    page.goto(server.url)
    page.wait_for_selector("html[data-ready=yes]")
    yield page
    context.close()
    assert [] == mistakes


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """The paths of three photographs."""
    paths = [tmp_path / f"picture_{seed}.jpg" for seed in range(3)]
    for seed, path in enumerate(paths):
        path.write_bytes(photo(seed, (320, 240)))
    return paths
