"""The demo page with several models, and with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import PATIENCE_MS, choose, opened, violations
from tests.e2e.server import Server

pytest.importorskip("playwright.sync_api", reason="pip install '.[browser]'")
from playwright.sync_api import Page, Route, expect

expect.set_options(timeout=PATIENCE_MS)


def test_one_model_is_no_choice(page: Page, server: Server, pictures: list[Path]) -> None:
    """With one model there is no select box, and no request names a model."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    choose(page, pictures[0])

    expect(page.locator("#model")).to_be_hidden()
    expect(page.locator("[data-status=model]")).to_have_text(server.info()["model"]["name"])
    assert asked
    assert [] == [url for url in asked if "model=" in url]


def test_a_chosen_model_answers_everything(page_of_several: Page, several: Server, pictures: list[Path]) -> None:
    """Choosing a model sends the pictures again, and its name is in each request from then on."""
    page = page_of_several
    page.set_input_files("#other", pictures[0])
    choose(page, pictures[0])
    expect(page.locator("#cosine")).to_have_text("1.000")
    expect(page.locator("#model")).to_have_value("demo")
    assert ["demo", "tiny"] == page.locator("#model option").all_inner_texts()

    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(f"{several.url}/")))
    page.select_option("#model", "tiny")
    expect(page.locator("#bars b").first).to_contain_text("thing ")
    expect(page.locator("#cosine")).to_have_text("1.000")
    assert {
        "info?model=tiny",
        "v1/classify?top_k=7&model=tiny",  # all classes, whose names the page does not know yet
        "v1/embed?normalize=false&model=tiny",
    } == set(asked)
    expect(page.locator("#knows")).to_contain_text("The model knows 7 classes: thing 0")
    page.click("#look")
    expect(page.locator("#heat")).to_be_visible()
    assert "tiny" == json.loads(page.locator("#raw").text_content() or "")["model"]["name"]


def test_only_ready_models_are_offered(page_of_several: Page) -> None:
    """A model that is not ready is not in the list; the list changes with the models."""
    page = page_of_several

    def loading(route: Route) -> None:
        answer = route.fetch()
        body: dict[str, Any] = answer.json()
        body["models"][1]["state"] = "starting"
        route.fulfill(response=answer, json=body)

    page.route("**/info*", loading)
    expect(page.locator("#model option")).to_have_text(["demo"])
    page.unroute("**/info*")
    expect(page.locator("#model option")).to_have_text(["demo", "tiny"])


def test_a_model_that_is_gone_gives_way_to_the_default_one(page_of_several: Page, pictures: list[Path]) -> None:
    """After 404 model_not_found the page goes back to the default model."""
    page = page_of_several
    gone = json.dumps({"code": "model_not_found", "detail": "unloaded"})
    page.route("**/info?model=tiny", lambda route: route.fulfill(status=404, body=gone))
    page.select_option("#model", "tiny")

    expect(page.locator("#model")).to_have_value("demo")
    assert 5 == len(choose(page, pictures[0]))


def test_without_the_default_model_another_one_is_asked(browser: Any, several: Server, pictures: list[Path]) -> None:
    """If the default model is not loaded, the page takes the first of the list; the refusal is simulated."""
    gone = json.dumps({"code": "model_not_found", "detail": "the default model is not loaded"})
    listed = json.dumps({"object": "list", "data": [{"id": "tiny"}]})

    def unload(page: Page) -> None:
        page.route("**/info", lambda route: route.fulfill(status=404, body=gone))
        page.route("**/v1/models", lambda route: route.fulfill(body=listed))

    with opened(browser, several, before=unload) as page:
        assert "thing " in choose(page, pictures[0])[0]
        expect(page.locator("#model")).to_have_value("tiny")


def test_the_choice_is_in_nobodys_way(page_of_several: Page) -> None:
    """axe finds no violation with the select box, and a phone needs no sideways scrolling."""
    page = page_of_several
    page.set_viewport_size({"width": 360, "height": 740})

    assert [] == violations(page)
    assert 360 >= page.evaluate("document.documentElement.scrollWidth")
