"""The demo page in a real browser: all inputs, all outputs, and accessibility."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.browser.conftest import PATIENCE_MS, answered, choose, hand_over, violations
from tests.e2e.server import Server
from tests.tiny import photo

pytest.importorskip("playwright.sync_api", reason="pip install '.[browser]'")
from playwright.sync_api import Page, Route, expect

expect.set_options(timeout=PATIENCE_MS)


def _native(server: Server, path: Path) -> list[dict[str, Any]]:
    answer = httpx.post(f"{server.url}/v1/classify", content=path.read_bytes())
    found: list[dict[str, Any]] = answer.json()["results"][0]["predictions"]
    return found


def test_an_upload_shows_what_the_api_answers(page: Page, server: Server, pictures: list[Path]) -> None:
    """An upload shows labels and scores in order, the stages with the batch, the vector, and the JSON."""
    labels = choose(page, pictures[0])

    expected = _native(server, pictures[0])
    assert [one["label"] for one in expected] == labels
    assert [f"{100 * one['score']:.1f} %" for one in expected] == page.locator("#bars span").all_inner_texts()
    assert {"decode", "infer", "batch"} <= set(page.locator("#timing dt").all_inner_texts())
    shown = json.loads(page.locator("#raw").text_content() or "")
    assert labels == [one["label"] for one in shown["results"][0]["predictions"]]
    width = server.info()["model"]["embedding_dim"]
    expect(page.locator("#vector")).to_have_attribute("aria-label", f"Embedding of {width} numbers")


@pytest.mark.parametrize(("kind", "target"), [("paste", "body"), ("drop", "#drop")])
def test_a_picture_can_be_pasted_and_dropped(
    page: Page, server: Server, pictures: list[Path], kind: str, target: str
) -> None:
    """A picture that is pasted or dropped gets the same answer as an upload."""
    hand_over(page, kind, pictures[1], target)

    assert [one["label"] for one in _native(server, pictures[1])] == answered(page, "handed.jpg")


def test_fewer_classes_can_be_asked_for(page: Page, pictures: list[Path]) -> None:
    """Choosing another number of classes sends the image again."""
    choose(page, pictures[0])
    page.select_option("#top_k", "3")

    expect(page.locator("#bars li")).to_have_count(3)


def test_a_sample_is_one_click(page: Page) -> None:
    """Every shipped sample has a button; a click classifies it and says whether the answer is right."""
    page.locator("#samples button").last.click()

    assert 5 == len(answered(page, "yellow-t-shirt.jpg"))
    expect(page.locator("#remark")).to_have_text("Wrong: this sample shows “t-shirt”.")


def test_comparing_a_picture_with_itself_gives_one(page: Page, pictures: list[Path]) -> None:
    """The similarity of an image is 1 with itself and less with another image."""
    choose(page, pictures[0])
    page.set_input_files("#other", pictures[0])
    expect(page.locator("#cosine")).to_have_text("1.000")

    hand_over(page, "drop", pictures[1], "#other-slot")
    expect(page.locator("#cosine")).to_have_text(re.compile(r"0\.\d+"))
    assert float(page.locator("#cosine").inner_text()) < 1


def test_the_gallery_puts_the_nearest_first_and_survives_a_reload(page: Page, pictures: list[Path]) -> None:
    """The gallery shows the nearest picture first, survives a reload, and can be emptied."""
    page.set_input_files("#many", pictures)
    expect(page.locator("#gallery li")).to_have_count(3)
    choose(page, pictures[2])
    expect(page.locator("#gallery b").first).to_have_text("1.000")
    assert "picture_2.jpg" == page.locator("#gallery span").first.inner_text()
    expect(page.locator("#points canvas")).to_have_count(3)
    expect(page.locator("#here")).to_be_visible()
    expect(page.locator("#lines line")).to_have_count(2)  # to the others

    page.reload()
    expect(page.locator("#gallery li")).to_have_count(3)
    page.click("#forget")
    expect(page.locator("#gallery li")).to_have_count(0)


def test_the_heat_map_starts_from_the_score_of_the_answer(page: Page, pictures: list[Path]) -> None:
    """The uncovered copy has the score of the answer, to a thousandth; the batches are in a tooltip."""
    page.locator("#samples button").last.click()
    answered(page, "yellow-t-shirt.jpg")
    shown = page.locator("#bars span").first.inner_text()
    with page.expect_response(lambda one: one.request.headers.get("x-request-class") == "bulk") as asked:
        page.click("#look")
    expect(page.locator("#heat")).to_be_visible()

    best = json.loads(page.locator("#raw").text_content() or "")["results"][0]["predictions"][0]
    copy = asked.value.json()["results"][0]["predictions"][0]
    assert best["label"] == copy["label"]
    assert copy["score"] == pytest.approx(best["score"], abs=1e-3)
    note = page.locator("#look-note").inner_text().replace("\u00a0", " ")
    assert f"changes “{best['label']}” from {shown} to " in note
    assert "uncovered copy" not in note
    assert "pictures in" in (page.locator("#look-note").get_attribute("title") or "")


def test_the_heat_map_of_a_large_picture_says_so(page: Page, tmp_path: Path) -> None:
    """The copies of a large picture are smaller; where that changes the score, the note has both scores."""
    (tmp_path / "large.jpg").write_bytes(photo(3, (1600, 1200)))
    choose(page, tmp_path / "large.jpg")
    page.click("#look")
    expect(page.locator("#heat")).to_be_visible()

    assert f"from {page.locator('#bars span').first.inner_text()} to" in page.locator(
        "#look-note"
    ).inner_text().replace("\u00a0", " ")


def test_the_heat_map_shows_its_progress_and_fades(page: Page, pictures: list[Path]) -> None:
    """While it is made, a bar shows how far it is; the slider sets its opacity; another picture removes it."""
    choose(page, pictures[0])
    held: list[Route] = []
    page.route("**/v1/classify*", lambda route: route.continue_() if held else held.append(route))
    with page.expect_request("**/v1/classify*"):
        page.click("#look")
    expect(page.locator("#look-progress")).to_be_visible()
    expect(page.locator("#look-note")).to_have_text("Covers one part after the other: 0 %")
    while not held:
        page.wait_for_timeout(10)
    held[0].continue_()
    expect(page.locator("#heat")).to_be_visible()
    expect(page.locator("#look-progress")).to_be_hidden()

    page.locator("#opacity").fill("30")
    expect(page.locator("#heat")).to_have_css("opacity", "0.3")
    page.click("#look-off")
    expect(page.locator("#heat")).to_be_hidden()
    page.click("#look")
    expect(page.locator("#heat")).to_be_visible()
    choose(page, pictures[1])
    expect(page.locator("#heat")).to_be_hidden()
    expect(page.locator("#look-note")).to_have_text("")


def test_an_error_says_what_is_wrong_with_its_request_id(page: Page, tmp_path: Path) -> None:
    """For a file that is no image the page shows the reason and the request id."""
    path = tmp_path / "letter.jpg"
    path.write_bytes(b"Dear server, this is no picture.")
    page.set_input_files("#file", path)

    expect(page.locator("#error")).to_contain_text("415 · unsupported_image · request ")
    for gone in ("#bars li", "#timing dl", "#top b"):
        expect(page.locator(gone)).to_have_count(0)
    for empty in ("#top", "#remark", "#vector-note"):
        expect(page.locator(empty)).to_have_text("")
    expect(page.locator("#vector")).to_have_attribute("aria-label", "No embedding yet")
    expect(page.locator("#raw")).to_have_text("{}")
    expect(page.locator("#look")).to_be_disabled()


def test_a_429_counts_down_and_asks_again(page: Page, pictures: list[Path]) -> None:
    """After a 429 the page counts down and asks again; the refusal is simulated, the answer is real."""
    refused = 0

    def refuse_once(route: Route) -> None:
        nonlocal refused
        refused += 1
        body = json.dumps({"detail": "queue full", "code": "queue_full"})
        route.fulfill(status=429, headers={"Retry-After": "2"}, body=body) if refused == 1 else route.continue_()

    page.route("**/v1/classify*", refuse_once)
    page.set_input_files("#file", pictures[0])
    expect(page.locator("#countdown")).to_have_text("Trying again in 2 s")
    expect(page.locator("#countdown")).to_have_text("Trying again in 1 s")

    assert 5 == len(answered(page, pictures[0].name))
    expect(page.locator("#error")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_stands_in_the_way_of_anybody(page: Page, pictures: list[Path], scheme: Any, width: int) -> None:
    """axe finds no violation of WCAG 2 A and AA in either colour scheme, with every part of the page in use."""
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 740})
    choose(page, pictures[0])
    page.set_input_files("#many", pictures)
    expect(page.locator("#gallery li")).to_have_count(3)
    for box in page.locator(".box input[type=file]").all():
        box.set_input_files(pictures)
    expect(page.locator("#taught li")).to_have_count(2)
    for summary in page.locator("summary").all():
        if summary.is_visible():
            summary.click()
    page.click("#look")
    expect(page.locator("#heat")).to_be_visible()

    assert [] == violations(page)


def test_it_works_with_the_keyboard_alone(page: Page, pictures: list[Path]) -> None:
    """Tab reaches every control in order; arrows move between the snippets."""
    page.keyboard.press("Tab")
    assert "Skip to the answer" == page.evaluate("document.activeElement.textContent")
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"file", "camera", "live", "paste", "look", "top_k", "other", "add-box", "import", "many"} <= reached
    assert {"inside", "tab-0", "panel", "copy"} <= reached

    page.focus("#tab-0")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-1")).to_have_attribute("aria-selected", "true")


def test_a_phone_shows_it_without_sideways_scrolling(page: Page, pictures: list[Path]) -> None:
    """At a width of 360 px the page does not scroll sideways."""
    page.set_viewport_size({"width": 360, "height": 740})
    choose(page, pictures[0])

    assert 360 >= page.evaluate("document.documentElement.scrollWidth")
