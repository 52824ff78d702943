"""A real server with the demo model and Debian's Chromium, headless; skipped where either half is missing."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import Server, serving
from tests.tiny import photo, write_tiny_model

CHROMIUM = shutil.which("chromium")
PATIENCE_MS = 60_000
ADMIN = "admin-key-of-the-test"
ELSEWHERE = "page.test"  # a name of this machine that the browser does not take for localhost
ARGUMENTS = (
    "--no-sandbox",
    "--use-fake-device-for-media-stream",  # a moving picture as the camera
    "--use-fake-ui-for-media-stream",
    f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1",
)
AXE = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}

# A file that the browser passes to the page when it is pasted or dropped.
_HAND_OVER = """([kind, data, target]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "handed.jpg", { type: "image/jpeg" }));
  const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: transfer, bubbles: true })
    : new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.querySelector(target).dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model, served as `make serve` does, with custom heads and an administrator."""
    directory = tmp_path_factory.mktemp("page")
    with serving(directory, heads_dir=directory / "heads", admin_keys=ADMIN) as server:
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
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
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
def opened(
    browser: Any, server: Server, url: str = "", before: Callable[[Any], None] = lambda page: None, **options: Any
) -> Iterator[Any]:
    """Open the page with its first sample answered; fails when a script failed or the policy blocked something.

    `before` is called with the page before it is opened; `options` are those of playwright's new_context.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
    context.grant_permissions(["clipboard-read", "clipboard-write", "camera"])
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    mistakes: list[str] = []
    page.on("pageerror", lambda error: mistakes.append(str(error)))
    page.on("console", lambda line: mistakes.append(line.text) if "Content Security Policy" in line.text else None)
    before(page)
    page.goto(url or server.url)
    page.wait_for_selector("html[data-ready=yes]")
    page.wait_for_selector("html[data-answered]")
    yield page
    context.close()
    assert [] == mistakes


def answered(page: Any, name: str) -> list[str]:
    """The class names of the answer to the picture with this name; waits for it."""
    page.wait_for_selector(f"html[data-answered='{name}']")
    found: list[str] = page.locator("#bars b").all_inner_texts()
    return found


def choose(page: Any, path: Path) -> list[str]:
    """Choose a file as the current picture; returns the class names of its answer."""
    page.set_input_files("#file", path)
    return answered(page, path.name)


def hand_over(page: Any, kind: str, path: Path, target: str) -> None:
    """Paste a file, or drop it on a target; its name is then handed.jpg."""
    page.evaluate(_HAND_OVER, [kind, base64.b64encode(path.read_bytes()).decode(), target])


def violations(page: Any) -> list[tuple[str, str]]:
    """What axe finds on the page: the rule and the first element."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install '.[browser]'")
    found = axe.Axe().run(page, options=AXE).response["violations"]
    return [(one["id"], one["nodes"][0]["html"]) for one in found]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """The paths of three photographs."""
    paths = [tmp_path / f"picture_{seed}.jpg" for seed in range(3)]
    for seed, path in enumerate(paths):
        path.write_bytes(photo(seed, (320, 240)))
    return paths
