"""Multipart, JSON and raw bodies over HTTP, with several images, and the compact encodings of embeddings."""

from __future__ import annotations

import base64

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.service.images.bmff_files import picture, sample
from tests.service.images.image_files import encode
from tests.tiny import photo

pytestmark = pytest.mark.anyio

PHOTOS = [photo(seed) for seed in range(3)]
TEXTS = [base64.b64encode(data).decode() for data in PHOTOS]


async def embeddings(response: httpx.Response) -> np.ndarray:
    """The embeddings of a JSON response."""
    return np.array([item["embedding"] for item in response.json()["results"]], np.float32)


async def test_the_same_image_gives_the_same_result_by_every_way(client: httpx.AsyncClient) -> None:
    """Raw bodies, forms, JSON and data URIs give the same result, wherever the options are."""
    answers = [
        await client.post("/v1/embed?normalize=false", content=PHOTOS[0]),
        await client.post("/v1/embed?normalize=false", files={"image": PHOTOS[0]}),
        await client.post("/v1/embed", files={"image": PHOTOS[0]}, data={"normalize": "false"}),
        await client.post("/v1/embed", json={"images": [TEXTS[0]], "normalize": False}),
        await client.post("/v1/embed", json={"images": [f"data:image/jpeg;base64,{TEXTS[0]}"], "normalize": False}),
    ]
    expected = await embeddings(answers[0])

    for answer in answers:
        assert 200 == answer.status_code
        np.testing.assert_allclose(await embeddings(answer), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["plain.heic", "turned.jxl", "avif"])
async def test_formats_of_phones_by_every_way(client: httpx.AsyncClient, name: str) -> None:
    """AVIF, HEIC and JPEG XL are accepted wherever an image is, and get the answer of the picture."""
    data = encode(picture(), "AVIF") if name == "avif" else sample(name)
    image = picture().transpose(Image.Transpose.ROTATE_270) if "turned" in name else picture()
    text = base64.b64encode(data).decode()
    answers = [
        await client.post("/v1/embed", content=data),
        await client.post("/v1/embed", files={"image": (name, data)}),
        await client.post("/v1/embed", json={"images": [text]}),
        await client.post("/v1/bulk", content=b'{"image": "%s"}\n' % text.encode()),
        await client.post("/v1/embed", content=encode(image, "PNG")),
    ]
    assert [200] * 5 == [answer.status_code for answer in answers]
    first, second, third, expected = [await embeddings(answer) for answer in (*answers[:3], answers[4])]

    np.testing.assert_allclose(second, first, atol=1e-6)
    np.testing.assert_allclose(third, first, atol=1e-6)
    np.testing.assert_allclose([answers[3].json()["embedding"]], first, atol=1e-6)
    assert float((first @ expected.T)[0, 0]) > 0.99


async def test_many_images_keep_their_order_and_their_own_errors(client: httpx.AsyncClient) -> None:
    """Images beyond one batch keep their order, and a bad image does not affect the others."""
    alone = [(await client.post("/v1/classify", content=data)).json()["results"][0]["predictions"] for data in PHOTOS]
    items = [base64.b64encode(PHOTOS[i % 3] + bytes([i])).decode() for i in range(11)]  # identical ones would share
    items[4] = base64.b64encode(b"no image").decode()
    items[7] = "https://example.org/cat.jpg"
    answer = await client.post("/v1/classify", json={"images": items})
    results = answer.json()["results"]

    assert 200 == answer.status_code
    assert list(range(11)) == [item["index"] for item in results]
    assert "unsupported_image" == results[4]["error"]["code"]
    assert "url_not_supported" == results[7]["error"]["code"]
    for index in (0, 1, 2, 3, 5, 6, 8, 9, 10):
        best, expected = results[index]["predictions"][0], alone[index % 3][0]
        assert expected["label"] == best["label"]
        assert expected["score"] == pytest.approx(best["score"], abs=1e-5)


async def test_all_bad_is_the_first_errors_status_with_every_error(client: httpx.AsyncClient) -> None:
    """If all images fail, the status is that of the first error, and the body has every error."""
    answer = await client.post("/v1/classify", json={"images": ["http://a/b", "AAAA"]})
    body = answer.json()

    assert (400, "url_not_supported") == (answer.status_code, body["code"])
    assert ["url_not_supported", "unsupported_image"] == [item["error"]["code"] for item in body["results"]]


async def test_base64_is_little_endian_float32(client: httpx.AsyncClient) -> None:
    """Base64 embeddings are little-endian float32 with the same values as JSON numbers."""
    plain = await embeddings(await client.post("/v1/embed", content=PHOTOS[1]))
    answer = await client.post("/v1/embed?encoding=base64", content=PHOTOS[1])
    found = np.frombuffer(base64.b64decode(answer.json()["results"][0]["embedding"]), "<f4")

    np.testing.assert_allclose(found, plain[0], atol=1e-6)


async def test_octets_are_rows_of_float32(client: httpx.AsyncClient) -> None:
    """`Accept: application/octet-stream` gives rows of float32, with shape and model in headers."""
    headers = {"Accept": "application/octet-stream"}
    answer = await client.post("/v1/embed", json={"images": TEXTS}, headers=headers)
    found = np.frombuffer(answer.content, "<f4").reshape(3, 32)

    assert "3,32" == answer.headers["X-Shape"]
    assert "application/octet-stream" == answer.headers["Content-Type"]
    assert 12 == len(answer.headers["X-Model-Fingerprint"])
    np.testing.assert_allclose(
        found, await embeddings(await client.post("/v1/embed", json={"images": TEXTS})), atol=1e-6
    )


async def test_a_bad_image_fails_octets_naming_its_index(client: httpx.AsyncClient) -> None:
    """A bad image fails a request for raw embeddings, and the error has its index."""
    headers = {"Accept": "application/octet-stream"}
    answer = await client.post("/v1/embed", json={"images": [TEXTS[0], "AAAA"]}, headers=headers)

    assert (415, "unsupported_image") == (answer.status_code, answer.json()["code"])
    assert answer.json()["detail"].startswith("image 1: ")


async def test_too_many_images_name_the_limit(client: httpx.AsyncClient) -> None:
    """A request with too many images gets 413 with the limit, and not 429 again and again."""
    answer = await client.post("/v1/classify", json={"images": [TEXTS[0]] * 65})

    assert (413, "too_many_images") == (answer.status_code, answer.json()["code"])
    assert "VIM_MAX_IMAGES" in answer.json()["detail"]
