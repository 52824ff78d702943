"""The client and a real server."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from vim_client import AsyncClient, Classification, Client, ImageError, ServerError, find_images

from model.heads.head import Head
from tests.e2e.server import Server, serving
from tests.tiny import photo, write_tiny_model


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two tiny models; "tiny" is the default."""
    directory = tmp_path_factory.mktemp("client")
    listed = [f"{name}={write_tiny_model(directory / name, seed)}" for seed, name in enumerate(("tiny", "other"))]
    with serving(directory, models=",".join(listed), heads_dir=directory / "heads") as server:
        put_heads(server, directory / "heads")
        yield server


def put_heads(server: Server, folder: Path) -> None:
    """Copy two custom heads of the default model into a folder."""
    folder.mkdir()
    for name, labels in (("mine", ("cat", "dog")), ("more", ("yes", "no", "perhaps"))):
        weight = np.random.default_rng(0).normal(size=(len(labels), 32)).astype(np.float32)
        head = Head(weight, np.zeros(len(labels), np.float32), labels, server.info()["model"]["fingerprint"])
        (folder / f"{name}.safetensors").write_bytes(head.to_bytes())


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of the server."""
    with Client(server.url, in_flight=4) as client:
        yield client


def native(server: Server, image: bytes) -> list[float]:
    """The embedding of an image as the endpoint returns it without the client."""
    found: list[float] = httpx.post(f"{server.url}/v1/embed", content=image).json()["results"][0]["embedding"]
    return found


def test_every_kind_of_image_gets_the_same_answer(server: Server, client: Client, tmp_path: Path) -> None:
    """A path, its text, the bytes, a PIL image and a numpy array of one image have the same embedding."""
    file = io.BytesIO()
    picture = Image.open(io.BytesIO(photo())).convert("RGB")
    picture.save(file, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(file.getvalue())
    expected = native(server, file.getvalue())

    for image in (path, str(path), file.getvalue(), picture, np.asarray(picture)):
        vector = client.embed(image)
        assert np.float32 == vector.dtype
        np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_classify_returns_typed_predictions(server: Server, client: Client) -> None:
    """`classify` returns `top_k` predictions, best first, and the fingerprint of the model."""
    answer = client.classify(photo(), top_k=3)
    body = httpx.post(f"{server.url}/v1/classify?top_k=3", content=photo()).json()

    assert [one["label"] for one in body["results"][0]["predictions"]] == [one.label for one in answer.predictions]
    assert body["model"]["fingerprint"] == answer.fingerprint == client.info()["model"]["fingerprint"]


def test_custom_heads(client: Client) -> None:
    """One head answers in `predictions`, several in `heads`; `classify_many` takes them too."""
    one = client.classify(photo(), head="mine")
    both = client.classify(photo(), head=["mine", "more"], top_k=1)
    many = list(client.classify_many([photo(), photo()], head=["mine", "more"], top_k=1))

    assert {"cat", "dog"} == {prediction.label for prediction in one.predictions}
    assert (None, {}) == (one.in_domain, one.heads)
    assert ["mine", "more"] == list(both.heads)
    assert () == both.predictions
    assert one.predictions[0] == both.heads["mine"].predictions[0]
    assert [both, both] == many
    with pytest.raises(ServerError, match="there is no head 'none'"):
        client.classify(photo(), head="none")


def test_options_of_embed_arrive(client: Client) -> None:
    """`pooling` and `normalize` reach the server: they change the vector and its length."""
    plain, mean, raw = (
        client.embed(photo()),
        client.embed(photo(), pooling="mean"),
        client.embed(photo(), normalize=False),
    )

    assert not np.allclose(plain, mean)
    assert 1 == pytest.approx(float(np.linalg.norm(plain)), abs=1e-5)
    np.testing.assert_allclose(plain, raw / np.linalg.norm(raw), atol=1e-5)


def test_the_crop_arrives(client: Client) -> None:
    """Every method sends the option `crop`, for one image and for many."""
    wide = photo(size=(150, 70))
    center, padded = client.embed(wide), client.embed(wide, crop="pad")

    assert not np.allclose(center, padded)
    (many,) = client.embed_many([wide], crop="pad")
    assert isinstance(many, np.ndarray)
    np.testing.assert_allclose(many, padded, atol=1e-6)
    alone = client.classify(wide, crop="full")
    assert [alone] == list(client.classify_many([wide], crop="full"))
    assert alone != client.classify(wide)


def test_each_call_may_name_its_model(server: Server, client: Client, tmp_path: Path) -> None:
    """`model=` selects one of several models, for one call or for all calls of a client; fingerprints tell them."""
    default, other = client.classify(photo()), client.classify(photo(), model="other")
    assert client.info()["model"]["fingerprint"] == default.fingerprint != other.fingerprint
    assert [other] == list(client.classify_many([photo()], model="other"))
    assert ["tiny", "other"] == [one["name"] for one in client.info()["models"]]

    vector = client.embed(photo(), model="other")
    with Client(server.url, model="other") as named:
        assert other.fingerprint == named.info()["model"]["fingerprint"]
        np.testing.assert_allclose(vector, named.embed(photo()), atol=1e-6)
        for found in named.embed_many([photo()] * 2):
            assert isinstance(found, np.ndarray)
            np.testing.assert_allclose(vector, found, atol=1e-5)
        assert not np.allclose(vector, named.embed(photo(), model="tiny"))
    (tmp_path / "a.jpg").write_bytes(photo())
    client.embed_folder(tmp_path, tmp_path / "out", model="other", progress=False)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), [vector], atol=1e-5)


def test_an_unknown_model_is_an_error(client: Client) -> None:
    """An unknown model raises ServerError with the names of the known ones; for many images it is each answer."""
    with pytest.raises(ServerError, match="404 model_not_found: .*'tiny', 'other'") as caught:
        client.embed(photo(), model="absent")

    assert ("model_not_found", 404) == (caught.value.code, caught.value.status)
    answers = client.embed_many([photo()] * 2, model="absent")
    assert ["model_not_found"] * 2 == [one.code for one in answers if isinstance(one, ServerError)]


def test_a_refusal_is_an_error_with_code_and_request_id(client: Client) -> None:
    """A file that is not an image raises ServerError with the status, code and request id of the response."""
    with pytest.raises(ServerError, match="415 unsupported_image") as caught:
        client.classify(b"no image at all")

    assert ("unsupported_image", 415) == (caught.value.code, caught.value.status)
    assert caught.value.request_id


def test_many_are_answered_in_order_with_errors_in_their_place(server: Server, client: Client, tmp_path: Path) -> None:
    """`embed_many` yields an error in the place of a bad image or a missing file, and answers all others."""
    images = [photo(0), b"broken", photo(1), tmp_path / "missing.jpg", photo(2)]
    first, broken, second, missing, third = client.embed_many(images)

    for seed, vector in enumerate((first, second, third)):
        assert isinstance(vector, np.ndarray)
        np.testing.assert_allclose(vector, native(server, photo(seed)), atol=1e-5)
    assert isinstance(broken, ServerError)
    assert isinstance(missing, ImageError)
    assert all(isinstance(one, Classification) for one in client.classify_many([photo()] * 3))


def test_no_more_images_are_taken_than_may_be_in_flight(client: Client) -> None:
    """`embed_many` takes at most `in_flight` images before the first answer; closing it ends the requests."""
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield photo()

    answers = client.embed_many(endless())
    next(answers)
    answers.close()  # type: ignore[attr-defined]

    assert 4 >= taken


def test_a_folder_becomes_an_array_and_a_list(server: Server, client: Client, tmp_path: Path) -> None:
    """`embed_folder` writes rows in the order of the paths; a file that is not an image has an error, no row."""
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.jpg").write_bytes(photo(1))
    (folder / "a.jpg").write_bytes(photo(0))
    (folder / "broken.png").write_bytes(b"broken")
    (folder / "deep" / "c.jpg").write_bytes(photo(2))
    (folder / ".hidden.jpg").write_bytes(photo(3))
    (folder / "notes.txt").write_text("no image")

    assert 3 == client.embed_folder(folder, tmp_path / "out.npy", progress=False)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    vectors = np.load(tmp_path / "out.npy")

    assert ["a.jpg", "b.jpg", "broken.png", "c.jpg"] == [Path(line["path"]).name for line in lines]
    assert [0, 1, None, 2] == [line.get("row") for line in lines]
    assert "unsupported_image" in lines[2]["error"]
    for seed in range(3):
        np.testing.assert_allclose(vectors[seed], native(server, photo(seed)), atol=1e-5)
    assert [folder / "a.jpg"] == find_images(folder)[:1]


@pytest.mark.anyio
async def test_the_asynchronous_client_is_the_same(server: Server) -> None:
    """`AsyncClient` returns the same embeddings as the endpoint."""
    async with AsyncClient(server.url) as client:
        vectors = [vector async for vector in client.embed_many([photo(0), photo(1)])]

    assert 2 == len(vectors)
    np.testing.assert_allclose(np.asarray(vectors[1]), native(server, photo(1)), atol=1e-5)


def test_a_folder_is_embedded_without_tqdm(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`embed_folder` needs no tqdm: without it there is no progress bar."""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    (tmp_path / "a.jpg").write_bytes(photo())

    assert 1 == client.embed_folder(tmp_path, tmp_path / "out")
