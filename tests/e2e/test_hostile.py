"""Bombs, mutated files and clients that vanish, against a real server: they do not affect other clients."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e import raw
from tests.e2e.hostile import ATTACKS, assault, mutated
from tests.e2e.interleaved import PILLOW, interleave, pillow_images
from tests.e2e.server import Server, serving
from tests.tiny import photo, write_tiny_model

MUTATED, VANISHING = 150, 100


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with batches of one, so that answers are equal to the bit."""
    folder = tmp_path_factory.mktemp("hostile")
    with serving(folder, model=write_tiny_model(folder / "tiny"), max_batch=1) as running:
        yield running


def scores(server: Server) -> list[object]:
    """The answer to an ordinary photograph."""
    answer = httpx.post(f"{server.url}/v1/classify?top_k=7", content=photo(), timeout=60)
    found: list[object] = answer.json()["results"]
    return found


def test_bombs_are_refused_by_name_with_flat_memory(server: Server) -> None:
    """Every bomb is refused with its code, and memory does not grow by more than the largest body."""
    before = scores(server)
    held = raw.memory_mb(server)
    with server.client() as client:
        answers = {attack.name: assault(client, attack)[0] for attack in ATTACKS}

    assert [] == [(attack.name, answers[attack.name]) for attack in ATTACKS if answers[attack.name] not in attack.codes]
    assert raw.memory_mb(server) - held < 100
    assert before == scores(server)


def test_mutated_files_between_good_ones(server: Server) -> None:
    """Mutated files get no 5xx, and the answers to good files stay equal to the bit. `make chaos` sends 5,000."""
    ledger = asyncio.run(interleave(server.url, mutated(MUTATED), clients=1))

    assert not set(ledger.bad) - {200, 400, 413, 415}
    assert ([], 0, MUTATED) == (ledger.failed, ledger.changed, ledger.good)


def test_pillows_own_test_images_between_good_ones(server: Server) -> None:
    """Every fourth test image of Pillow is sent and does not affect good files. `make chaos` sends all of them."""
    if not (bad := pillow_images()):
        pytest.skip(f"no {PILLOW.name} in .cache: make chaos ARGS='--only pillow' downloads it")

    ledger = asyncio.run(interleave(server.url, bad[::4], clients=1))

    assert not set(ledger.bad) - {200, 400, 413, 415}
    assert ([], 0, len(bad[::4])) == (ledger.failed, ledger.changed, ledger.good)


def test_clients_that_vanish_leave_nothing_behind(server: Server) -> None:
    """Clients that leave in the header, the body or before the answer leave no descriptors or slots behind."""
    before, open_before = scores(server), raw.descriptors(server)
    body = photo()
    for turn in range(VANISHING):
        with raw.connect(server) as connection:
            sent = raw.post("/v1/classify", length=len(body)) + body
            connection.sendall(sent[: (20, 200, len(sent))[turn % 3]])

    assert raw.until(lambda: raw.descriptors(server) <= open_before + 2)
    assert raw.until(lambda: _depth(server) == 0)
    assert before == scores(server)


def _depth(server: Server) -> float:
    lines = httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vim_queue_depth"))
