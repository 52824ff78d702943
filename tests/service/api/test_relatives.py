"""A Mamba-Reg is served in every contract: its embeddings are wider than its tokens."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from model import load
from model.runtime.runner import Runner
from service.app import create_app
from tests.service.conftest import running, settings_for
from tests.tiny import photo, write_tiny_model

pytestmark = pytest.mark.anyio

SPREAD: dict[str, Any] = {"family": "mamba-reg", "class_token": "spread", "spread_tokens": 3, "neck_reduction": 2}
CLS, MEAN = 48, 32  # dimensions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a small Mamba-Reg."""
    return write_tiny_model(tmp_path_factory.mktemp("spread") / "mambar", **SPREAD)


@pytest.fixture(scope="module")
async def spread(model: Path, anyio_backend: object) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server with that model, in the mode of the reference."""
    async with running(create_app(settings_for(model, preprocess="reference"))) as client:
        yield client


async def test_info_and_metrics_name_the_family(spread: httpx.AsyncClient) -> None:
    """/info has both dimensions and the recipe of the family."""
    info, metrics = (await spread.get("/info")).json(), (await spread.get("/metrics")).text

    names = ("family", "embedding_dim", "mean_embedding_dim")
    assert ["mamba-reg", CLS, MEAN] == [info["model"][name] for name in names]
    assert (1.0, 64) == (info["preprocess"]["crop_ratio"], info["preprocess"]["resize"])
    assert "fused" == info["scan"]["path"]
    assert 'vim_model_info{device="cpu",dtype="float32",family="mamba-reg",model="mambar"' in metrics


@pytest.mark.parametrize(("pooling", "width"), [("cls", CLS), ("mean", MEAN)])
async def test_native_embeddings(spread: httpx.AsyncClient, model: Path, pooling: str, width: int) -> None:
    """Either pooling has its own dimension, and the numbers are those of the model itself."""
    vim = load(model, device="cpu")
    pixels = vim.preprocess(Image.open(io.BytesIO(photo())))
    rows = Runner(vim).run(pixels[None], scores=False, cls=True, mean=True)

    params = {"pooling": pooling, "normalize": "false"}
    answer = (await spread.post("/v1/embed", params=params, content=photo())).json()
    found = np.array(answer["results"][0]["embedding"], np.float32)
    assert (width,) == found.shape
    np.testing.assert_allclose(found, getattr(rows, pooling)[0], rtol=0, atol=1e-5)


async def test_other_contracts(spread: httpx.AsyncClient) -> None:
    """OpenAI and Weaviate clients get the same vector, and OIP's metadata has its dimension."""
    text = base64.b64encode(photo()).decode()
    native = (await spread.post("/v1/embed", content=photo(), params={"normalize": "false"})).json()
    vector = native["results"][0]["embedding"]

    wanted = {"input": [f"data:image/jpeg;base64,{text}"], "model": "mambar", "normalized": False}
    openai = await spread.post("/v1/embeddings", json=wanted)
    weaviate = await spread.post("/vectors", json={"id": "1", "image": text})
    about = (await spread.get("/v2/models/mambar")).json()

    assert vector == openai.json()["data"][0]["embedding"]
    assert CLS == len(weaviate.json()["vector"]) == weaviate.json()["dim"]
    assert [[-1, 7], [-1, CLS], [-1, 1]] == [one["shape"] for one in about["outputs"]]


async def test_it_classifies(spread: httpx.AsyncClient) -> None:
    """Scores are those of the head over all class tokens."""
    answer = (await spread.post("/v1/classify", content=photo(), params={"top_k": 7})).json()

    assert 7 == len(answer["results"][0]["predictions"])
    assert 1.0 == pytest.approx(sum(one["score"] for one in answer["results"][0]["predictions"]), abs=1e-5)
