"""What the page shows on arrival: an answered sample, what the model knows, and nothing that moves."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.browser.conftest import ELSEWHERE, PATIENCE_MS, answered, opened, violations
from tests.e2e.server import Server

pytest.importorskip("playwright.sync_api", reason="pip install '.[browser]'")
from playwright.sync_api import Page, Route, expect

expect.set_options(timeout=PATIENCE_MS)

_SHIFTS = """
window.shifts = 0;
new PerformanceObserver((list) => list.getEntries().forEach((one) => (window.shifts += one.value)))
  .observe({ type: "layout-shift", buffered: true });
"""
_SENT = "performance.getEntriesByType('resource').map((one) => [one.name, one.encodedBodySize])"


def test_a_sample_is_answered_on_arrival(page: Page) -> None:
    """The first sample has its answer, its time, its vector, and the remark that the answer is right."""
    expect(page.locator("#bars b").first).to_have_text("hat")
    expect(page.locator("#remark")).to_have_text("Right: this sample shows “hat”.")
    expect(page.locator("#timing dt").first).to_have_text("decode")
    expect(page.locator("#vector")).to_have_attribute("aria-label", "Embedding of 160 numbers")


def test_the_header_says_what_the_model_knows(page: Page, server: Server) -> None:
    """The header names the classes in words; the state unfolds."""
    answer = httpx.post(
        f"{server.url}/v1/classify?top_k=10", content=httpx.get(f"{server.url}/samples/sun-hat.jpg").content
    )
    labels = sorted(one["label"] for one in answer.json()["results"][0]["predictions"])

    expect(page.locator("#knows")).to_have_text(
        f"The model knows 10 classes: {', '.join(labels)}. It answers every picture with these."
    )
    expect(page.locator("[data-status=device]")).to_be_hidden()
    page.get_by_text("ready · demo").click()
    expect(page.locator("[data-status=device]")).to_have_text("cpu")


def test_of_many_classes_some_are_named_and_all_are_a_click_away(page: Page) -> None:
    """A thousand names do not fit the header: it names eight, and the list unfolds."""
    page.evaluate("""async () => {
      const app = document.querySelector("script[type=module]").src;
      const { knows } = await import(app.replace("app.js", "show.js"));
      knows(1000, Array.from({ length: 1000 }, (_, i) => `thing ${i}`));
    }""")
    named = ", ".join(f"thing {i}" for i in range(8))
    expect(page.locator("#knows")).to_have_text(
        f"The model knows 1000 classes, such as {named}. It answers every picture with these."
    )
    page.get_by_text("All classes").click()
    expect(page.locator("#class-list")).to_contain_text("thing 999")
    assert [] == violations(page)


def test_samples_are_marked_as_right_and_wrong(page: Page, server: Server) -> None:
    """Each sample has a mark, from the model's answers, which are those of the manifest."""
    expect(page.locator("#samples em")).to_have_count(8)
    expected = ["✓" if one["label"] == one["predicted"] else "✗" for one in httpx.get(f"{server.url}/samples").json()]

    assert expected == page.locator("#samples em").all_inner_texts()
    assert {"✓", "✗"} == set(expected)


@pytest.mark.parametrize(("share", "doubt"), [(0.02, True), (0.4, False), (None, False)])
def test_a_picture_that_is_probably_none_of_them_is_said_to_be_so(
    browser: Any, server: Server, share: float | None, doubt: bool
) -> None:
    """Where the server says that few pictures look as unusual, the page says so; that value is simulated."""

    def add(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        for one in body["results"]:
            one |= {} if share is None else {"in_domain": share}
        route.fulfill(response=answer, json=body)

    with opened(browser, server, before=lambda page: page.route("**/v1/classify*", add)) as page:
        expect(page.locator("#samples em")).to_have_count(8)  # the last request
        text = "This may be none of the classes that the model knows."
        assert doubt == (text in page.locator("#remark").inner_text())
        assert doubt == ("perhaps none of these" in (page.locator("#top").text_content() or ""))


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_moves_on_arrival_and_with_another_picture(browser: Any, server: Server, width: int) -> None:
    """The sum of all layout shifts is about 0, from the empty page to the second answer; none is excused by a click."""
    size = {"width": width, "height": 900}
    with opened(browser, server, before=lambda page: page.add_init_script(_SHIFTS), viewport=size) as page:
        expect(page.locator("#samples em")).to_have_count(8)
        page.locator("#samples button").nth(6).click()
        answered(page, "bobble-hat.jpg")
        page.wait_for_timeout(300)

        assert 0.005 > page.evaluate("window.shifts")
        assert width >= page.evaluate("document.documentElement.scrollWidth")


def test_it_is_small_and_ready_soon(browser: Any, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """The page sends at most 200 kB without samples; how long it takes to be ready is printed."""
    with opened(browser, server) as page:
        sent = {name: size for name, size in page.evaluate(_SENT) if "/samples" not in name}
        expect(page.locator("#samples em")).to_have_count(8)
        ready, first = page.evaluate("performance.getEntriesByType('mark').map((one) => one.startTime)")
    with capsys.disabled():
        print(f"\n{sum(sent.values()) / 1000:.0f} kB; ready after {ready:.0f} ms, first answer after {first:.0f} ms")

    assert 200_000 > sum(sent.values())


def test_on_a_phone_the_answer_is_over_the_picture(page: Page) -> None:
    """At 360 px the best class and its score are at the bottom of the picture; on a wide screen they are beside it."""
    expect(page.locator("#top")).to_be_hidden()
    page.set_viewport_size({"width": 360, "height": 740})

    expect(page.locator("#top")).to_have_text(f"hat {page.locator('#bars span').first.inner_text()}")
    place, picture = page.locator("#top").bounding_box(), page.locator("#preview").bounding_box()
    assert place
    assert picture
    assert picture["y"] < place["y"] < picture["y"] + picture["height"]


def test_without_https_the_page_says_what_the_camera_needs(browser: Any, server: Server) -> None:
    """Under a name that is not localhost, without https, the button is off and a line says why."""
    url = server.url.replace("127.0.0.1", ELSEWHERE)
    with opened(browser, server, url) as page:
        expect(page.locator("#live")).to_be_disabled()
        expect(page.locator("#live-note")).to_have_text("The live camera needs https, or this page on localhost.")


def test_a_failing_request_on_arrival_is_shown(browser: Any, server: Server) -> None:
    """If the first answer fails, the error is shown, and a later picture is answered."""
    failed = json.dumps({"detail": "out of order", "code": "inference_failed"})
    refused = 0

    def fail_once(route: Route) -> None:
        nonlocal refused
        refused += 1
        route.fulfill(status=500, body=failed) if refused == 1 else route.continue_()

    context = browser.new_context()
    page = context.new_page()
    page.route("**/v1/classify*", fail_once)
    page.goto(server.url)
    expect(page.locator("#error")).to_contain_text("out of order")
    expect(page.locator("#bars li")).to_have_count(0)
    page.locator("#samples button").nth(2).click()
    assert "dress" == answered(page, "dress.jpg")[0]
    context.close()
