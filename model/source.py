"""Where the parts of a model lie on disk: weights, configuration, labels, preprocessing.

Opens none of them: `model.checkpoint` reads the weights, `model.weights` the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model.errors import WeightsError

SHIPPED = {"demo": Path(__file__).resolve().parents[1] / "models" / "demo"}
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True, slots=True)
class Source:
    """Paths of a model's parts; None for a part that the source does not bring."""

    weights: Path
    config: Path | None = None
    labels: Path | None = None
    preprocess: Path | None = None


def resolve(source: str | Path) -> Source:
    """Find the parts of `source`: a directory, one file of weights, or the name of a shipped model (`demo`).

    A lone file stands for itself: a config.json that happens to lie beside it is not picked up, since folders of
    downloads mix models. Name the directory to use both. Raises WeightsError when there is nothing to load.
    """
    path = Path(source).expanduser()
    if not path.exists():
        path = SHIPPED.get(str(source), path)
    if path.is_dir():
        beside = {name: path / f"{name}.json" for name in ("config", "labels", "preprocess")}
        return Source(_weights_in(path), **{name: file for name, file in beside.items() if file.is_file()})
    if not path.exists():
        raise WeightsError(f"{path} does not exist; give a directory, or a file ({', '.join(SUFFIXES)})")
    if path.suffix == ".json":
        raise WeightsError(f"{path} is JSON, not weights; name its directory {path.parent} to load the model there")
    return Source(path)


def _weights_in(directory: Path) -> Path:
    named = directory / "model.safetensors"
    if named.is_file():
        return named
    files = sorted(file for file in directory.iterdir() if file.suffix in SUFFIXES and file.is_file())
    # The same model is often kept in both formats; the safer one is taken.
    safe = [file for file in files if file.suffix == ".safetensors"]
    candidates = safe or files
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise WeightsError(f"{directory} holds no weights: no model.safetensors and no file {', '.join(SUFFIXES)}")
    names = ", ".join(file.name for file in candidates)
    raise WeightsError(f"{directory} holds several files of weights ({names}): name the one you mean")
