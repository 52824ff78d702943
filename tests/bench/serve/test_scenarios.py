"""The loads of the servers are complete, equal for all, and supported by each of them."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from bench.photographs import photograph
from bench.serve import runs
from bench.serve.peers import OURS, PEERS
from bench.serve.scenarios import DRY, MEDIUM, REGIMES, SATURATION, SIDES, SMALL, Regime, load_of
from tests.bench.serve.some_runs import RUN
from tests.bench.serve.some_runs import runs as some_runs


@pytest.mark.parametrize("regime", [*REGIMES.values(), DRY], ids=lambda regime: regime.name)
def test_a_regime_can_be_run(regime: Regime) -> None:
    """A regime has distinct names and known peers, and rates come after the scenarios that they depend on."""
    names = [scenario.name for scenario in regime.scenarios]

    assert len(names) == len(set(names))
    assert SATURATION == names[0]
    assert set(regime.peers) <= PEERS.keys()
    assert OURS in regime.peers
    assert all(bool(scenario.clients) != bool(scenario.share) for scenario in regime.scenarios)
    assert all(scenario.kill_at_s < scenario.seconds for scenario in regime.scenarios)


def test_an_open_loop_brings_what_its_rate_depends_on() -> None:
    """An open loop includes the scenario that its rate depends on, even when it is chosen by name."""
    chosen = REGIMES["a"].chosen(frozenset({"overload, 300 %"}))

    assert [SATURATION, "overload, 300 %"] == [scenario.name for scenario in chosen]
    assert [SATURATION] == [scenario.name for scenario in REGIMES["a"].chosen(frozenset({SATURATION}))]
    assert REGIMES["a"].scenarios == REGIMES["a"].chosen(frozenset())


def test_rates_are_shares_of_what_the_best_of_the_others_answers() -> None:
    """Rates are shares of the throughput of the best other server, or of this service where it is alone."""
    assert 110.0 == runs.capacity(some_runs(), "a")
    assert 100.0 == runs.capacity([RUN], "a")
    assert 1.0 == runs.capacity([], "a")


def test_many_images_go_in_a_form_where_there_is_one() -> None:
    """Several images are one form where a server accepts forms, and parallel requests otherwise."""
    many = next(s for s in REGIMES["a"].scenarios if s.images > 1)
    ours, mosec = (load_of(many, PEERS[name], 1, "", 0.0, 1) for name in (OURS, "mosec"))

    assert (True, "/v1/classify", 64) == (ours.form, ours.path, ours.images)
    assert (False, "/classify", 64) == (mosec.form, mosec.path, mosec.images)


def test_nobody_is_always_the_first() -> None:
    """The order of the servers rotates with each round."""
    assert [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]] == [runs.rotated(["a", "b", "c"], n) for n in (1, 2, 3)]


@pytest.mark.parametrize("size", [SMALL, MEDIUM])
def test_photographs_have_the_size_that_their_name_says(size: str) -> None:
    """Photographs have the size of their name and are always the same; those of 2 MB are not tested."""
    side, quality, _ = SIDES[size]
    data = photograph(0, side, quality)

    assert 1000 * int(size.split(maxsplit=1)[0]) == pytest.approx(len(data), rel=0.1)
    assert side == Image.open(io.BytesIO(data)).size
    assert data == photograph(0, side, quality)
