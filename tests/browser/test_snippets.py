"""The page's code snippets run unchanged: beside a photograph called photo.jpg, or with the picture inside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.browser.conftest import choose
from tests.e2e.server import ROOT
from tests.tiny import photo

pytest.importorskip("playwright.sync_api", reason="pip install '.[browser]'")
from playwright.sync_api import Page, expect

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}  # for our own client
COMMANDS = {"curl": ["sh", "-e"], "JavaScript": ["node", "--input-type=module"]}


def _copied(page: Page, op: str, name: str) -> str:
    """The text in the clipboard after a click on Copy."""
    page.check(f"input[name=op][value={op}]")
    page.get_by_role("tab", name=name, exact=True).click()
    page.click("#copy")
    expect(page.locator("#copy")).to_have_text("Copied")
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


SNIPPETS = {
    "classify": ["curl", "Python", "huggingface_hub", "tritonclient", "JavaScript"],
    "embed": ["curl", "Python", "openai", "tritonclient", "JavaScript"],
}


@pytest.mark.parametrize("op", SNIPPETS)
def test_every_client_that_can_ask_this_is_offered(page: Page, op: str) -> None:
    """The page offers a snippet for each of these clients and for no other; the next test runs them."""
    page.check(f"input[name=op][value={op}]")

    assert SNIPPETS[op] == page.locator("#tabs button").all_inner_texts()


EVERY = pytest.mark.parametrize(("op", "name"), [(op, name) for op, names in SNIPPETS.items() for name in names])


@EVERY
def test_a_snippet_runs_as_copied(page: Page, tmp_path: Path, op: str, name: str) -> None:
    """A copied snippet runs without changes, and for classify it prints the best label."""
    _check(page, tmp_path, op, name, "v1/classify")


@EVERY
def test_a_snippet_names_the_chosen_model(page_of_several: Page, tmp_path: Path, op: str, name: str) -> None:
    """Of several models each snippet asks the chosen one."""
    page_of_several.select_option("#model", "tiny")
    expect(page_of_several.locator("#snippet")).to_contain_text("tiny")
    _check(page_of_several, tmp_path, op, name, "v1/classify?model=tiny")


@EVERY
def test_a_snippet_with_the_picture_inside_needs_no_file(page: Page, tmp_path: Path, op: str, name: str) -> None:
    """With the picture inside, a snippet runs in an empty folder. The page shows the picture's code cut short."""
    (tmp_path / "picture.jpg").write_bytes(photo(1))
    (tmp_path / "empty").mkdir()
    choose(page, tmp_path / "picture.jpg")
    page.check("#inside")
    expect(page.locator("#snippet")).to_contain_text("…")
    _check(page, tmp_path / "empty", op, name, "v1/classify", photo(1))


def test_a_large_picture_is_made_smaller_for_the_code(page: Page, tmp_path: Path) -> None:
    """A picture of more than 48 kB is inside as a smaller copy, and the page says so."""
    (tmp_path / "large.png").write_bytes(photo(1, (800, 800), "PNG"))
    assert 48_000 < (tmp_path / "large.png").stat().st_size
    choose(page, tmp_path / "large.png")
    page.check("#inside")

    expect(page.locator("#inside-note")).to_contain_text("a smaller copy")
    assert 48_000 > len(_copied(page, "classify", "curl"))


def _check(page: Page, tmp_path: Path, op: str, name: str, path: str, picture: bytes = b"") -> None:
    if name not in COMMANDS and name != "Python":
        pytest.importorskip(name, reason="pip install '.[browser]'")
    if not picture:
        (tmp_path / "photo.jpg").write_bytes(photo())
    page.select_option("#top_k", "3")
    code = _copied(page, op, name)
    command = COMMANDS.get(name, [sys.executable, "-"])
    ran = subprocess.run(
        command, input=code, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )

    assert 0 == ran.returncode, f"{code}\n{ran.stderr}"
    best = httpx.post(f"{page.url}{path}", content=picture or photo()).json()["results"][0]["predictions"][0]["label"]
    assert (best if op == "classify" else "") in ran.stdout
    assert ran.stdout.strip()
