"""The sample images: `python -m training.samples` writes `examples/images/` from Debian's dataset-fashion-mnist.

They are the first test images of the classes that the demo model also has, so none is chosen for its result. The
dataset stores negatives of 28 x 28; they are inverted to dark on white and enlarged.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

import model
from training.data import normalised
from training.fashion_mnist import read_idx

FOLDER = Path("examples/images")
MANIFEST = "manifest.json"
SIDE = 224
# Fashion-MNIST's class number: the file's name, and the demo model's class. 8, a bag, has no class.
CLASSES = {
    0: ("t-shirt", "t-shirt"),
    1: ("trousers", "pants"),
    2: ("pullover", "longsleeve"),
    3: ("dress", "dress"),
    4: ("coat", "outwear"),
    5: ("sandal", "shoes"),
    6: ("shirt", "shirt"),
    7: ("sneaker", "shoes"),
    9: ("boot", "shoes"),
}


@dataclass(frozen=True)
class Sample:
    """One image, its origin, and the shipped demo model's prediction for it."""

    file: str
    label: str
    source: str
    licence: str
    predicted: str
    score: float


def main() -> None:
    """Write the images and the manifest, with the predictions of the current demo model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    args = parser.parse_args()
    write_images(args.dataset)
    write_manifest(args.dataset, Path("models/demo"))


def write_images(dataset: Path) -> None:
    """Write one PNG per class."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    pixels, classes = read_idx(dataset / "t10k-images-idx3-ubyte.gz"), read_idx(dataset / "t10k-labels-idx1-ubyte.gz")
    for number, (name, _) in CLASSES.items():
        image = Image.fromarray(255 - pixels[int((classes == number).argmax())]).convert("RGB")
        image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(FOLDER / f"{name}.png", optimize=True)


def write_manifest(dataset: Path, directory: Path) -> None:
    """Write what each image is, and what the model in `directory` predicts."""
    classes = read_idx(dataset / "t10k-labels-idx1-ubyte.gz")
    network = model.load(directory, device="cpu")
    samples = []
    for number, (name, label) in CLASSES.items():
        source = f"Fashion-MNIST, test image {int((classes == number).argmax())} (Debian dataset-fashion-mnist)"
        predicted, score = answer(network, FOLDER / f"{name}.png")
        samples.append(Sample(f"{name}.png", label, source, "MIT, Copyright 2017 Zalando SE", predicted, score))
    write(FOLDER, samples, _card(samples, network.fingerprint))


def write(folder: Path, samples: list[Sample], card: str) -> None:
    """Write the manifest for programs, and the card for readers."""
    text = json.dumps([asdict(sample) for sample in samples], indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def rows_of(samples: list[Sample]) -> str:
    """The rows of a card: what each image is, and what the model predicts."""
    return "\n".join(
        f"| ![{s.label}]({s.file}) | `{s.file}` | {s.label} | {s.predicted}, {s.score:.3f}"
        f"{'' if s.predicted == s.label else ' (wrong)'} |"
        for s in samples
    )


def _card(samples: list[Sample], fingerprint: str) -> str:
    right = sum(sample.predicted == sample.label for sample in samples)
    return f"""# Sample images

The first test image of each class of [Fashion-MNIST](https://github.com/zalandoresearch/fashion-mnist) (MIT, see
LICENSE) that the demo model has a name for, turned back from the dataset's negatives and enlarged from 28 to {SIDE} px.
None of them was trained on, and none was chosen for its answer: the demo model (`{fingerprint}`) is right about
{right} of {len(samples)}. They are grey and blurred, unlike the colour photographs that it mostly learned from; beside
those it saw some of the dataset's training images. There is none of hat, shorts and skirt. `manifest.json` has the same
for programs; `python -m training.samples` wrote both.

| image | file | what it is | what the demo model says |
| --- | --- | --- | --- |
{rows_of(samples)}
"""


def read_manifest(folder: Path = FOLDER) -> list[Sample]:
    """Return the shipped samples of a folder."""
    return [Sample(**row) for row in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))]


@torch.inference_mode()
def answer(network: model.Vim, path: Path) -> tuple[str, float]:
    """Return the model's top class and its score."""
    with Image.open(path) as image:
        pixels = torch.from_numpy(network.preprocess(image.convert("RGB")))
    scores = network(normalised(pixels[None])).softmax(1)[0]
    best = int(scores.argmax())
    return network.labels.names[best], round(scores[best].item(), 4)


if __name__ == "__main__":
    main()
