"""The peers serve the same rows, classes and pixels as this service, and receive their orders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import model
from bench.photographs import photograph
from bench.serve import probe, standin, weights
from bench.serve.served import Order, Served, decoder, recipe_of
from model.preprocessing.recipe import Preprocess
from model.runtime.runner import Runner
from tests.tiny import tiny_vim

ROOT = Path(__file__).parents[3]


def order(source: str, *, decoder: str = "pillow") -> Order:
    """An order for a model on the CPU."""
    return Order(source, False, "cpu", decoder, 4, 8000, 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of the miniature model."""
    return weights.source("miniature", tmp_path_factory.mktemp("cache"))


def test_an_order_reaches_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """An order is passed to another process through the environment, unchanged."""
    sent = Order("a folder", True, "cuda", "compiled", 32, 8001, 2)
    for name, value in sent.environment().items():
        monkeypatch.setenv(name, value)

    assert sent == Order.read()


def test_answers_have_classes_and_embeddings(source: str) -> None:
    """Answers come in order, with the best class first and embeddings of unit length, as JSON values."""
    served = Served(order(source), threads=1)
    decode = decoder(order(source), served.preprocess)
    pixels = [decode(photograph(seed)) for seed in (0, 1)]
    classes, embeddings = served.classify(pixels), served.embed(pixels)

    assert 2 == len(json.loads(json.dumps([classes, embeddings]))[0])
    scores = [one["score"] for one in classes[0]["predictions"]]
    assert (5, True) == (len(scores), scores == sorted(scores, reverse=True))
    assert [1.0, 1.0] == pytest.approx([np.linalg.norm(one["embedding"]) for one in embeddings])


def test_both_decoders_make_the_same_pixels(source: str) -> None:
    """Both decoders give the same pixels, so that only their speed differs."""
    recipe = recipe_of(order(source))
    pillow, compiled = (decoder(order(source, decoder=name), recipe) for name in ("pillow", "compiled"))

    assert np.array_equal(pillow(photograph(0)), compiled(photograph(0)))


def test_the_recipe_needs_no_weights(source: str) -> None:
    """The recipe is that of the loaded model, also where only the configuration has the size."""
    for name in (source, "demo"):
        loaded = model.load(name, preprocess="friendly", device="cpu").preprocess
        assert loaded == recipe_of(order(name))


def test_the_stand_in_tells_images_apart() -> None:
    """The stand-in's rows depend on the pixels and not on the batch, and have the model's shape."""
    vim = tiny_vim()
    vim.preprocess = Preprocess(size=64)
    runner = Runner(vim, max_batch=4)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    together = standin.run(runner, pixels, scores=True, cls=True, mean=False)
    alone = standin.run(runner, pixels[1:2], scores=True, cls=True, mean=False)

    assert together.scores is not None
    assert alone.scores is not None
    assert ((3, 7), (3, 32), None) == (together.scores.shape, together.cls.shape, together.mean)  # type: ignore[union-attr]
    assert np.array_equal(together.scores[1], alone.scores[0])
    assert not np.allclose(together.scores[0], together.scores[1])
    assert [1.0] * 3 == pytest.approx(together.scores.sum(1))


def test_an_answer_is_found_whatever_is_around_it() -> None:
    """The answer is found in the form of every server."""
    theirs = [{"predictions": [{"label": "shoe", "score": 0.5}]}]
    ours = {"model": {"name": "x"}, "results": [{"index": 0, "predictions": [{"label": "shoe", "score": 0.5002}]}]}

    assert probe.agree(ours, theirs)
    assert not probe.agree(ours, [{"predictions": [{"label": "hat", "score": 0.5}]}])
    assert not probe.agree(ours, [{"predictions": [{"label": "shoe", "score": 0.4}]}])
    with pytest.raises(LookupError):
        probe.best({"detail": "not found"})


@pytest.mark.slow
def test_a_dry_run_goes_all_the_way(tmp_path: Path) -> None:
    """A dry run with two real servers finishes all loads, and a killed process of this service loses no request."""
    out = tmp_path / "serve.json"
    command = [sys.executable, "-m", "bench.serve", "--dry-run", "--cache", str(tmp_path / "cache"), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False, timeout=300)
    assert 0 == done.returncode, done.stderr
    found = json.loads(out.read_text())

    assert [] == found["disagree"]
    assert 6 == len(found["runs"])
    assert all(run["sent"] > 0 for run in found["runs"])
    killed = {run["peer"]: run for run in found["runs"] if run["scenario"] == "a worker killed"}
    assert 0 == killed["this service"]["lost"]
    assert "a worker killed" not in done.stdout
    assert "SIGKILL for the process with the model" in done.stdout
