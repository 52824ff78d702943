"""Search a folder by image: embed it, store the vectors in Qdrant, find the nearest, draw a contact sheet.

    make serve                                                     # in another terminal
    .venv/bin/python -m pip install qdrant-client tqdm ./client
    .venv/bin/python -m examples.image_search FOLDER QUERY.jpg --out sheet.png

By default Qdrant runs in this process and keeps nothing. With `--qdrant URL` a server keeps the vectors, and images
that it has are not embedded again. The name of the collection contains the fingerprint of the model, so that vectors of
different models are never mixed. With `--model NAME` one of several models of the server is used.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

import numpy as np
from PIL import Image, ImageDraw, ImageOps

NEEDS = "qdrant-client tqdm ./client"
try:
    from qdrant_client import QdrantClient
    from qdrant_client.models import Distance, PointStruct, VectorParams
    from tqdm import tqdm
    from vim_client import Client, ClientError, find_images
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing.name} is not installed: {sys.executable} -m pip install {NEEDS}") from None

BATCH = 256
TILE, MARGIN, LINE = 160, 8, 18


@dataclass(frozen=True)
class Hit:
    """A picture that was found, and the cosine of its embedding and the query's."""

    path: Path
    cosine: float


def index(client: Client, folder: Path, database: QdrantClient) -> str:
    """Embed every image below `folder` that the database does not have; return the name of the collection.

    Images that cannot be embedded are named on stderr.
    """
    model = client.info()["model"]
    name = f"images-{model['fingerprint']}"
    if not database.collection_exists(name):
        database.create_collection(name, VectorParams(size=model["embedding_dim"], distance=Distance.COSINE))
    ids = {path: str(uuid5(NAMESPACE_URL, path.resolve().as_uri())) for path in find_images(folder)}
    stored = {record.id for record in database.retrieve(name, list(ids.values()), with_payload=False)}
    paths = [path for path, number in ids.items() if number not in stored]
    points: list[PointStruct] = []
    answers = tqdm(client.embed_many(paths), total=len(paths), unit="image")  # counts answers, not requests
    for path, answer in zip(paths, answers, strict=True):
        if not isinstance(answer, np.ndarray):
            tqdm.write(f"{path}: {answer}", file=sys.stderr)
            continue
        points.append(PointStruct(id=ids[path], vector=answer.tolist(), payload={"path": str(path)}))
        if len(points) == BATCH:
            database.upsert(name, points)
            points = []
    if points:
        database.upsert(name, points)
    return name


def search(client: Client, database: QdrantClient, collection: str, query: Path, count: int) -> list[Hit]:
    """The `count` nearest pictures, nearest first."""
    found = database.query_points(collection, query=client.embed(query).tolist(), limit=count).points
    return [Hit(Path((point.payload or {})["path"]), point.score) for point in found]


def contact_sheet(query: Path, hits: list[Hit], columns: int = 5) -> Image.Image:
    """The query, followed by the hits with their cosines."""
    shown = [("query", query)] + [(f"{hit.cosine:.3f}", hit.path) for hit in hits]
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * (TILE + MARGIN) + MARGIN, rows * (TILE + LINE + MARGIN) + MARGIN), "white")
    for i, (text, path) in enumerate(shown):
        left, top = (
            MARGIN + (i % columns) * (TILE + MARGIN),
            MARGIN + (i // columns) * (TILE + LINE + MARGIN),
        )
        with Image.open(path) as image:
            sheet.paste(ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (TILE, TILE)), (left, top))
        ImageDraw.Draw(sheet).text((left, top + TILE + 2), text, fill="black")
    return sheet


def main(arguments: list[str] | None = None) -> None:
    """Index, search, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="images to search in")
    parser.add_argument("query", type=Path, help="image to search by")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the server is")
    parser.add_argument("--model", metavar="NAME", help="one of several models of the server")
    parser.add_argument("--qdrant", default=":memory:", metavar="URL", help="a Qdrant server that keeps the vectors")
    parser.add_argument("--count", type=int, default=9, help="how many to find")
    parser.add_argument("--out", type=Path, help="where to write the contact sheet")
    args = parser.parse_args(arguments)
    database = QdrantClient(args.qdrant)
    try:
        with Client(args.url, model=args.model) as client:
            collection = index(client, args.folder, database)
            hits = search(client, database, collection, args.query, args.count)
    except ClientError as error:
        raise SystemExit(str(error)) from None
    for hit in hits:
        print(f"{hit.cosine:.3f}  {hit.path}")
    if args.out:
        contact_sheet(args.query, hits).save(args.out)


if __name__ == "__main__":
    main()
