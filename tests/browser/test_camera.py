"""The live camera, with Chromium's fake one: a moving picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.browser.conftest import PATIENCE_MS, answered, choose

pytest.importorskip("playwright.sync_api", reason="pip install '.[browser]'")
from playwright.sync_api import Page, Route, expect

expect.set_options(timeout=PATIENCE_MS)

LIVE = "Live camera"


def test_the_camera_is_answered_again_and_again(page: Page) -> None:
    """Several pictures are answered, one after the other, the bars stay in place and move, and the rate is shown."""
    page.locator("#bars li").first.evaluate("row => (row.id = 'kept')")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/v1/classify" in request.url else None)
    page.click("#live")
    expect(page.locator("#video")).to_be_visible()
    expect(page.locator("#seen")).to_contain_text("pictures a second")

    assert 8 < len(asked)
    expect(page.locator("#bars")).to_have_attribute("aria-live", "off")
    expect(page.locator("#look")).to_be_disabled()
    assert page.locator("#bars li").count() == 5


def test_when_the_camera_stops_its_last_picture_stays(page: Page) -> None:
    """After Stop the last picture is the current one, with its answer, and the camera is released."""
    page.click("#live")
    expect(page.locator("#seen")).to_contain_text("pictures a second")
    page.click("#live")

    assert 5 == len(answered(page, "camera.jpg"))
    expect(page.locator("#live")).to_have_text(LIVE)
    expect(page.locator("#video")).to_be_hidden()
    expect(page.locator("#look")).to_be_enabled()
    assert page.evaluate("document.querySelector('#video').srcObject === null")


def test_another_picture_ends_the_camera(page: Page, pictures: list[Path]) -> None:
    """A chosen file takes the place of the camera, and its answer is not replaced by a later one."""
    page.click("#live")
    expect(page.locator("#seen")).to_contain_text("pictures a second")
    labels = choose(page, pictures[0])
    page.wait_for_timeout(500)

    expect(page.locator("#video")).to_be_hidden()
    assert labels == page.locator("#bars b").all_inner_texts()


def test_an_error_ends_the_camera_and_clears_the_answer(page: Page) -> None:
    """After an error no old answer remains; a busy server is waited for instead."""
    page.click("#live")
    expect(page.locator("#seen")).to_contain_text("pictures a second")
    busy = json.dumps({"detail": "queue full", "code": "queue_full"})
    page.route("**/v1/classify*", lambda route: route.fulfill(status=429, headers={"Retry-After": "1"}, body=busy))
    expect(page.locator("#seen")).to_have_text("Live: the server is busy.")
    page.unroute("**/v1/classify*")
    expect(page.locator("#seen")).to_contain_text("pictures a second")

    def fail(route: Route) -> None:
        route.fulfill(status=500, body=json.dumps({"detail": "out of order", "code": "inference_failed"}))

    page.route("**/v1/classify*", fail)
    expect(page.locator("#error")).to_contain_text("out of order")
    expect(page.locator("#bars li")).to_have_count(0)
    expect(page.locator("#live")).to_have_text(LIVE)
