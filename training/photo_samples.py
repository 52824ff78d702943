"""The demo page's samples: `python -m training.photo_samples ARCHIVE` copies `examples/photos/` out of the zip.

Chosen by hand to be different from each other. The page shows the first on arrival. The last two are among those that
the demo model gets wrong.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import model
from training.samples import Sample, answer, rows_of, write

FOLDER = Path("examples/photos")
SOURCE = "alexeygrigorev/clothing-dataset-small"
# The file's name here: class and name among the validation photographs.
CHOSEN = {
    "sun-hat.jpg": "hat/50cf0bbc-5a25-4df9-94fe-3323d2b61bff.jpg",
    "boots.jpg": "shoes/5e577f40-dd22-4b40-9827-ce6cae5ac3fd.jpg",
    "dress.jpg": "dress/7a80fe51-8dfd-4e62-a65a-b192365731fa.jpg",
    "shirt.jpg": "shirt/5d97eab8-e62b-49cf-b73e-7cec4951d9c2.jpg",
    "jacket.jpg": "outwear/2c1c3c2a-5b22-4133-9509-1877d6a106a0.jpg",
    "shorts.jpg": "shorts/3e203f7a-5b90-4b27-9303-a5634a80f015.jpg",
    "bobble-hat.jpg": "hat/8f809fea-1f7d-4695-be36-a061bd77c170.jpg",
    "yellow-t-shirt.jpg": "t-shirt/0090ca2c-e8c8-43f6-b764-e48e0e954006.jpg",
}


def main() -> None:
    """Copy the photographs and write the manifest, with the predictions of the current demo model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="the zip with the folder validation/")
    copy_photographs(parser.parse_args().archive)
    write_manifest(Path("models/demo"))


def copy_photographs(archive: Path) -> None:
    """Copy the files, unchanged, and their licence."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as files:
        for name, original in CHOSEN.items():
            (FOLDER / name).write_bytes(files.read(f"validation/{original}"))
        (FOLDER / "LICENSE").write_bytes(files.read("LICENSE"))


def write_manifest(directory: Path) -> None:
    """Write what each photograph is, and what the model in `directory` predicts."""
    network = model.load(directory, device="cpu")
    samples = []
    for name, original in CHOSEN.items():
        source = f"{SOURCE}, validation/{original}, short side scaled to 160 px"
        samples.append(Sample(name, original.split("/")[0], source, "CC0 1.0", *answer(network, FOLDER / name)))
    write(FOLDER, samples, _card(samples, network.fingerprint))


def _card(samples: list[Sample], fingerprint: str) -> str:
    right = sum(sample.predicted == sample.label for sample in samples)
    return f"""# Sample photographs of the demo page

{len(samples)} validation photographs of [clothing-dataset-small](https://github.com/{SOURCE}) (CC0 1.0, see
LICENSE), scaled to a short side of 160 px. The demo model was not trained on them. They were chosen by hand, two of
them because its answer is wrong: the demo model (`{fingerprint}`) is right about {right} of {len(samples)}. Its
model card has the accuracy on all validation photographs. `manifest.json` has the same for programs;
`python -m training.photo_samples` wrote both.

| photograph | file | what it is | what the demo model says |
| --- | --- | --- | --- |
{rows_of(samples)}
"""


if __name__ == "__main__":
    main()
