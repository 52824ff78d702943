"""The effect of `VIM_DECODE=fast` on a model's answers: the same JPEG files decoded both ways, then one pass each.

    python -m bench.fast PHOTOGRAPHS --model models/demo --enlarge 320

PHOTOGRAPHS has a folder of JPEG files for each class, named by the class. Other files have no true class, but their
answers and embeddings are compared. Files smaller than twice the size of the model's recipe are not scaled while they
are decoded; `--enlarge` resizes the short side to this length beforehand.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import model
from model.preprocessing.recipe import Preprocess
from service.images.decode import DecodeLimits, Decoder
from service.images.jpeg import Jpegs
from training.data import normalised

LIMITS = DecodeLimits(1 << 30)


def enlarged(data: bytes, short: int) -> bytes:
    """The photograph resized to a short side of `short` pixels, as a JPEG file of quality 90."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = short / min(image.size)
    size = round(image.width * scale), round(image.height * scale)
    encoded = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def pixels(data: bytes, recipe: Preprocess, jpegs: Jpegs) -> np.ndarray:
    """The pixels that the service computes for a file."""
    out = np.empty((recipe.size, recipe.size, 3), np.uint8)
    Decoder(recipe, LIMITS, jpegs=jpegs).decode(data, out)
    return out


@torch.inference_mode()
def passed(network: model.Vim, batches: Iterator[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Logits and features of all photographs."""
    features = torch.cat([network.forward_features(normalised(torch.from_numpy(batch))) for batch in batches])
    return network.forward_head(features), features


def batches(files: list[bytes], recipe: Preprocess, jpegs: Jpegs) -> Iterator[np.ndarray]:
    """Pixels of 32 files at a time."""
    for start in range(0, len(files), 32):
        yield np.stack([pixels(data, recipe, jpegs) for data in files[start : start + 32]])


def compare(network: model.Vim, files: list[bytes], truths: list[int | None]) -> dict[str, Any]:
    """Correct answers in both ways, equal answers, and the cosines of the embeddings."""
    exact, fast = (passed(network, batches(files, network.preprocess, Jpegs(scale=s))) for s in (False, True))
    known = [i for i, truth in enumerate(truths) if truth is not None]
    wanted = torch.tensor([truths[i] for i in known], dtype=torch.long)[:, None]

    def right(logits: Tensor, among: int) -> int:
        return int((logits[known].topk(among).indices == wanted).any(1).sum())

    cosine = F.cosine_similarity(exact[1].double(), fast[1].double())
    return {
        "files": len(files),
        "with_a_class": len(known),
        "right": {"exact": right(exact[0], 1), "fast": right(fast[0], 1)},
        "right_among_three": {"exact": right(exact[0], 3), "fast": right(fast[0], 3)},
        "same_answer": round((exact[0].argmax(1) == fast[0].argmax(1)).double().mean().item(), 4),
        "cosine": {
            name: round(cosine.quantile(q).item(), 5) for name, q in (("least", 0), ("p5", 0.05), ("median", 0.5))
        },
    }


def main() -> None:
    """Compare both ways and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--model", default="models/demo")
    parser.add_argument("--enlarge", type=int, help="short side in pixels")
    parser.add_argument("--most", type=int, default=10_000, help="files, evenly spread")
    options = parser.parse_args()
    network = model.load(options.model, device="cpu")
    paths = sorted(options.photographs.rglob("*.jpg"))
    paths = paths[:: -(-len(paths) // options.most)]
    labels = list(network.labels.names) if network.labels else []
    truths = [labels.index(path.parent.name) if path.parent.name in labels else None for path in paths]
    files = [path.read_bytes() for path in paths]
    if options.enlarge:
        files = [enlarged(data, options.enlarge) for data in files]
    print(json.dumps(compare(network, files, truths), indent=2))


if __name__ == "__main__":
    main()
