"""Train the demo model: `python -m training.train --data ZIP --out models/demo`.

An ImageNet network is fine-tuned on the photographs (`training.teacher`) and evaluated on many views of each
(`training.views`); a small Vision Mamba then learns to reproduce its outputs, in phases of growing image size. Finished
results are kept in the cache, the student after every epoch, so the same command resumes after an interruption. At the
end the moving average of the weights is written as a model directory and measured as served.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.multiprocessing.spawn import spawn

from training.curve import write_curve
from training.data import read_photos
from training.heap import keep_freed_memory
from training.learning import LOG, learn
from training.recipe import CORES, Paths, Recipe, recipe_text
from training.report import report
from training.state import State, resume
from training.student import resized
from training.teacher import teacher_for
from training.views import write_views


def main() -> None:
    """Parse the command line, train, and write the model directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="zip with train/ and validation/<class>/*.jpg")
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/demo_cache"), help="teacher, views, checkpoints")
    parser.add_argument("--teacher-packages", type=Path, help="folder with the teacher's packages, if not installed")
    parser.add_argument("--grey", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="Fashion-MNIST")
    parser.add_argument(
        "--start", type=Path, help="model directory whose weights start the third phase, without the first two"
    )
    args = parser.parse_args()
    if not args.grey.is_dir():
        parser.error(f"{args.grey} is not there: apt-get install dataset-fashion-mnist, or --grey DIR")
    if args.teacher_packages:
        sys.path.append(str(args.teacher_packages))
    train(Recipe(), Paths(args.data, args.out, args.cache, args.grey, args.start))


def train(recipe: Recipe, paths: Paths) -> None:
    """Run the steps that the cache does not contain: teacher, views, phases; then write and measure the model."""
    keep_freed_memory()
    torch.set_num_threads(CORES)
    paths.cache.mkdir(parents=True, exist_ok=True)
    cut(0, recipe, paths, range(1))
    _spawn(cut, recipe, paths, range(1, recipe.views + recipe.wide_views))
    (paths.cache / "meeting").unlink(missing_ok=True)
    _spawn(learn, recipe, paths)
    labels = read_photos(paths.archive, "validation").labels
    write_model(recipe, resume(recipe, paths.cache, len(labels)), paths.out, labels)
    write_curve(paths.out / LOG, paths.out / "training_curve.svg")
    report(paths.archive, paths.out, recipe_text(recipe, paths.out / LOG))


def cut(rank: int, recipe: Recipe, paths: Paths, views: range) -> None:
    """Fine-tune the teacher if the cache has none, and write this worker's share of the views."""
    photos, validation = read_photos(paths.archive, "train"), read_photos(paths.archive, "validation")
    teacher = teacher_for(paths.cache, recipe.teacher, photos, validation)
    write_views(paths.cache, teacher, photos, views[rank :: recipe.workers], recipe.views, recipe.seed)


def _spawn(job: Callable[..., None], recipe: Recipe, paths: Paths, *args: object) -> None:
    """Run a function in `recipe.workers` processes of one core each."""
    spawn(  # type: ignore[no-untyped-call]
        _start, (job, sys.path[:], recipe, paths, *args), nprocs=recipe.workers
    )


def _start(rank: int, job: Callable[..., None], path: list[str], *args: object) -> None:
    sys.path[:] = path
    keep_freed_memory()
    torch.set_num_threads(1)
    job(rank, *args)


def write_model(recipe: Recipe, state: State, out: Path, labels: tuple[str, ...]) -> None:
    """Write the averaged weights, at the size at which they are served, as a model directory."""
    config = recipe.config(recipe.served, len(labels))
    grown = resized(state.averaged, state.student.vim.config, config)
    weights = {n.removeprefix("vim."): v.contiguous() for n, v in grown.items() if n.startswith("vim.")}
    config.save(out / "config.json")
    (out / "preprocess.json").write_text(json.dumps({"crop_ratio": recipe.crop_ratio}) + "\n", encoding="utf-8")
    save_file(weights, out / "model.safetensors")
    (out / "model.safetensors").chmod(0o644)
    (out / "labels.json").write_text(json.dumps(labels, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
