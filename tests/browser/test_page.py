"""The demo page in a real browser: all inputs, all outputs, and accessibility."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.browser.conftest import PATIENCE_MS
from tests.e2e.server import Server

pytest.importorskip("playwright.sync_api", reason="pip install '.[browser]'")
from playwright.sync_api import Page, Route, expect

expect.set_options(timeout=PATIENCE_MS)

# A file that the browser passes to the page when it is pasted or dropped.
_HAND_OVER = """([kind, data, target]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "handed.jpg", { type: "image/jpeg" }));
  const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: transfer, bubbles: true })
    : new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.querySelector(target).dispatchEvent(event);
}"""


def _answered(page: Page) -> list[str]:
    """The class names of the answer; waits for it."""
    expect(page.locator("#look")).to_be_enabled()
    found: list[str] = page.locator("#bars b").all_inner_texts()
    return found


def _choose(page: Page, path: Path) -> list[str]:
    page.set_input_files("#file", path)
    return _answered(page)


def _hand_over(page: Page, kind: str, path: Path, target: str) -> None:
    page.evaluate(_HAND_OVER, [kind, base64.b64encode(path.read_bytes()).decode(), target])


def _native(server: Server, path: Path) -> list[dict[str, Any]]:
    answer = httpx.post(f"{server.url}/v1/classify", content=path.read_bytes())
    found: list[dict[str, Any]] = answer.json()["results"][0]["predictions"]
    return found


def test_an_upload_shows_what_the_api_answers(page: Page, server: Server, pictures: list[Path]) -> None:
    """An upload shows labels and scores in order, the stages with the batch, the vector, and the JSON."""
    labels = _choose(page, pictures[0])

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
    _hand_over(page, kind, pictures[1], target)

    assert [one["label"] for one in _native(server, pictures[1])] == _answered(page)


def test_fewer_classes_can_be_asked_for(page: Page, pictures: list[Path]) -> None:
    """Choosing another number of classes sends the image again."""
    _choose(page, pictures[0])
    page.select_option("#top_k", "3")

    expect(page.locator("#bars li")).to_have_count(3)


def test_a_sample_is_one_click(page: Page) -> None:
    """Every shipped sample has a button; a click classifies it."""
    expect(page.locator("#samples button").first).to_be_visible()
    assert page.locator("#samples button").count() >= 6
    page.locator("#samples button").first.click()

    assert 5 == len(_answered(page))


def test_comparing_a_picture_with_itself_gives_one(page: Page, pictures: list[Path]) -> None:
    """The similarity of an image is 1 with itself and less with another image."""
    _choose(page, pictures[0])
    page.set_input_files("#other", pictures[0])
    expect(page.locator("#cosine")).to_have_text("1.000")

    _hand_over(page, "drop", pictures[1], "#other-slot")
    expect(page.locator("#cosine")).not_to_have_text("1.000")
    assert float(page.locator("#cosine").inner_text()) < 1


def test_the_gallery_puts_the_nearest_first_and_survives_a_reload(page: Page, pictures: list[Path]) -> None:
    """The gallery shows the nearest picture first, survives a reload, and can be emptied."""
    page.set_input_files("#many", pictures)
    expect(page.locator("#gallery li")).to_have_count(3)
    _choose(page, pictures[2])
    expect(page.locator("#gallery b").first).to_have_text("1.000")
    assert "picture_2.jpg" == page.locator("#gallery span").first.inner_text()

    page.reload()
    expect(page.locator("#gallery li")).to_have_count(3)
    page.click("#forget")
    expect(page.locator("#gallery li")).to_have_count(0)


def test_where_it_looked_is_one_request_of_many_pictures(page: Page, pictures: list[Path]) -> None:
    """One bulk request holds every part of the grid and the whole picture, and the batch sizes are shown."""
    _choose(page, pictures[0])
    with page.expect_request(lambda one: one.method == "POST" and "classify" in one.url) as asked:
        page.click("#look")
    expect(page.locator("#heat")).to_be_visible()

    assert "bulk" == asked.value.headers["x-request-class"]
    note = page.locator("#look-note").inner_text()
    count = int(note.split(" pictures in one request")[0].split()[-1])
    sizes = [int(size) for size in note.rstrip(".").split("batches of ")[1].split(" + ")]
    assert (count - 1) == round((count - 1) ** 0.5) ** 2
    assert count == sum(sizes)
    page.click("#look-off")
    expect(page.locator("#heat")).to_be_hidden()


def test_an_error_says_what_is_wrong_with_its_request_id(page: Page, tmp_path: Path) -> None:
    """For a file that is no image the page shows the reason and the request id."""
    path = tmp_path / "letter.jpg"
    path.write_bytes(b"Dear server, this is no picture.")
    page.set_input_files("#file", path)

    expect(page.locator("#error")).to_contain_text("415 · unsupported_image · request ")
    expect(page.locator("#bars li")).to_have_count(0)


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

    assert 5 == len(_answered(page))
    expect(page.locator("#error")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_stands_in_the_way_of_anybody(page: Page, pictures: list[Path], scheme: Any) -> None:
    """axe finds no violation of WCAG 2 A and AA in either colour scheme."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install '.[browser]'")
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    _choose(page, pictures[0])
    page.set_input_files("#many", pictures)
    expect(page.locator("#gallery li")).to_have_count(3)

    found = axe.Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
    assert [] == [(one["id"], one["nodes"][0]["html"]) for one in found.response["violations"]]


def test_it_works_with_the_keyboard_alone(page: Page, pictures: list[Path]) -> None:
    """Tab reaches every control in order; arrows move between the snippets."""
    page.keyboard.press("Tab")
    assert "Skip to the answer" == page.evaluate("document.activeElement.textContent")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"file", "camera", "paste", "top_k", "other", "many", "tab-0", "panel", "copy"} <= reached

    page.focus("#tab-0")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-1")).to_have_attribute("aria-selected", "true")


def test_a_phone_shows_it_without_sideways_scrolling(page: Page, pictures: list[Path]) -> None:
    """At a width of 360 px the page does not scroll sideways."""
    page.set_viewport_size({"width": 360, "height": 740})
    _choose(page, pictures[0])

    assert 360 >= page.evaluate("document.documentElement.scrollWidth")


def test_the_answer_moves_nothing(page: Page, pictures: list[Path]) -> None:
    """No layout shift between the empty page and the page with an answer."""
    places = "[...document.querySelectorAll('section')].map((one) => Math.round(one.getBoundingClientRect().top))"
    before = page.evaluate(places)
    _choose(page, pictures[0])

    assert before == page.evaluate(places)
