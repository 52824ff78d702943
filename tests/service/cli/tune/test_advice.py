"""From measurements to settings: what is recommended, and the figures that its reason names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from service.cli.tune.advice import Advice, Measured, advise, notes, profile
from service.cli.tune.command import env_file, report
from service.settings import Settings
from tools.simulate_fleet import Profile

CPU = Measured(
    "vim-tiny",
    "cpu",
    cpus=2,
    start_s=5.2,
    decode={1: 150.0, 2: 290.0},
    passes={1: 0.05, 2: 0.08, 4: 0.14, 8: 0.24, 16: 0.48},
    together=28.0,
    source="2026-01-01, made up",
)
GPU = Measured(
    "vim-small",
    "NVIDIA H100",
    cpus=16,
    start_s=20,
    decode={1: 300.0, 2: 600.0, 4: 1110.0, 8: 1150.0, 16: 1160.0},
    passes={1: 0.005, 8: 0.006, 64: 0.02, 256: 0.08},
    together=1100.0,
)


def settings(measured: Measured, wait_s: float = 1) -> dict[str, int]:
    """The recommended values by variable."""
    return {one.variable: one.value for one in advise(measured, wait_s)}


def reason(measured: Measured, variable: str, wait_s: float = 1) -> str:
    """The reason of one recommendation."""
    return next(one.reason for one in advise(measured, wait_s) if one.variable == variable)


def test_the_largest_batch_is_the_smallest_that_is_nearly_as_fast() -> None:
    """The smallest batch with nearly the best rate is recommended, since each request waits for its whole batch."""
    assert 8 == settings(CPU)["VIM_MAX_BATCH"]
    assert "100 % of the best size's; a pass takes 240 ms" in reason(CPU, "VIM_MAX_BATCH", 10)


def test_a_pass_takes_no_more_than_a_quarter_of_the_wait() -> None:
    """Passes that are too long for the clients' wait are not recommended, whatever their rate."""
    assert 2 == settings(CPU, 0.5)["VIM_MAX_BATCH"]
    assert "a pass of 4 takes 140 ms, too much of 500 ms" in reason(CPU, "VIM_MAX_BATCH", 0.5)


def test_the_queue_holds_a_request_of_the_most_images() -> None:
    """A queue that is shorter than VIM_MAX_IMAGES would refuse such a request for ever."""
    queue = advise(CPU, 1, max_images=64)[1]

    assert ("VIM_QUEUE_IMAGES", 64) == (queue.variable, queue.value)
    assert queue.reason.startswith("one request may hold them: VIM_MAX_IMAGES; at 28 images/s the last waits 2.53 s")


def test_nobody_is_quick_enough_for_the_impatient() -> None:
    """When one image takes longer than clients wait, the batch is one and the queue two images."""
    assert {"VIM_MAX_BATCH": 1, "VIM_QUEUE_IMAGES": 2}.items() <= settings(CPU, 0.05).items()


def test_the_queue_holds_what_can_be_answered_in_time() -> None:
    """The queue holds as many images as are answered within the clients' wait."""
    assert 21 == settings(CPU)["VIM_QUEUE_IMAGES"]
    assert "28 images/s" in reason(CPU, "VIM_QUEUE_IMAGES")


def test_the_queue_has_room_for_a_batch_to_wait_while_one_runs() -> None:
    """The queue holds at least two batches, and the reason says how long the last image waits."""
    slow = replace(CPU, together=10.0)

    assert 16 == settings(slow)["VIM_QUEUE_IMAGES"]
    assert "the last waits 1.84 s" in reason(slow, "VIM_QUEUE_IMAGES")


def test_threads_are_counted_only_where_the_model_does_not_need_them() -> None:
    """A number of threads is recommended only on a GPU, when more threads do not decode faster."""
    assert 4 == settings(GPU)["VIM_THREADS"]
    assert "VIM_THREADS" not in settings(CPU)


@pytest.mark.parametrize(("measured", "bound"), [(CPU, "device"), (GPU, "decode")])
def test_the_limit_is_named(measured: Measured, bound: str) -> None:
    """The remark names what limits the rate, with both rates."""
    text = " ".join(notes(measured))

    assert bound == measured.bound
    assert {"device": "The model is the limit: 33.3 images/s against 290", "decode": "Decoding is the limit: 1.16e+03"}[
        bound
    ] in text


def test_what_is_recommended_is_accepted() -> None:
    """The written environment file loads as settings."""
    for measured in (CPU, GPU):
        lines = list(env_file(measured, advise(measured, 1)))
        given = dict(line.split("=") for line in lines if not line.startswith("#"))

        assert settings(measured) == {name: int(text) for name, text in given.items()}
        assert Settings.load(given).max_batch == settings(measured)["VIM_MAX_BATCH"]


def test_the_simulation_takes_the_profile(tmp_path: Path) -> None:
    """Passes of the profile are as slow as decoding and model together, and end at the recommended batch."""
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile(CPU, advise(CPU, 1))))
    read = Profile.read(path)

    assert 28 == pytest.approx(read.capacity, rel=1e-3)
    assert 0.05 == pytest.approx(read.pass_s[1])
    assert (8, 21, 5.2) == (len(read.pass_s) - 1, read.queue, read.start_s)


def test_the_report_shows_figures_and_reasons() -> None:
    """The report has a line for every measurement and a reason for every setting."""
    advice = [Advice("VIM_MAX_BATCH", 8, "because")]
    text = "\n".join(report(CPU, advice))

    assert "ready 5.2 s after the start" in text
    assert "     2     290.0 images/s" in text
    assert "     8      33.3 images/s     240.0 ms" in text
    assert "VIM_MAX_BATCH=8\n    because" in text
    assert "aim at 4 images" in text
