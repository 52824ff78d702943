"""Accuracy of a loaded model on labelled images: top-1 and top-5 with 95 % intervals, calibration error, speed.

Images are decoded in threads while the model runs. `model.commands.image_folder` finds the images and their classes.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from model.commands.image_folder import Sample
from model.config import VimConfig
from model.errors import ModelError
from model.preprocessing.recipe import Preprocess
from model.runtime.runner import Runner

Array = np.ndarray
BINS = 10
_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
_SHOWN = 20  # most unreadable files to list
_AHEAD = 3  # batches decoded ahead


@dataclass(slots=True)
class Tally:
    """The results so far: for each image its confidence and the rank of the true class (0 is best, `top` beyond)."""

    top: int  # 5, or the number of classes if that is smaller
    answers: list[tuple[float, int]] = field(default_factory=list)
    bad: list[tuple[Path, str]] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False

    def add(self, scores: Array, labels: Sequence[int]) -> None:
        """Add rows of scores (n, classes); of equal scores the lower index ranks first."""
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self.top]
        hits = best == np.asarray(labels)[:, None]
        ranks = np.where(hits.any(axis=1), hits.argmax(axis=1), self.top)
        self.answers += zip(scores.max(axis=1).astype(float).tolist(), ranks.tolist(), strict=True)

    def report(self) -> dict[str, Any]:
        """Return the figures, JSON-ready. Proportions and their 95 % intervals are between 0 and 1."""
        count = len(self.answers)
        confidence, ranks = (np.asarray(column) for column in zip(*self.answers, strict=True))
        return {
            "images": count,
            "top1": _share(int((ranks < 1).sum()), count),
            "top5": _share(int((ranks < self.top).sum()), count),
            "calibration_error": calibration_error(confidence, ranks == 0),
            "mean_confidence": float(confidence.mean()),
            "images_per_second": count / self.seconds,
            "seconds": self.seconds,
            "unreadable": [{"file": str(path), "reason": reason} for path, reason in self.bad],
            "interrupted": self.interrupted,
        }


def evaluate(runner: Runner, samples: Iterable[Sample], seen: Callable[[int], Any] = lambda count: None) -> Tally:
    """Score all samples in order. Ctrl-C stops early and keeps the results.

    `seen` is called with the number of images done. Images that cannot be read are counted. Raises ModelError for a
    model that does not classify photographs, and if no image could be read.
    """
    check_classifier(runner.vim.config)
    tally = Tally(min(5, runner.vim.config.num_classes))
    start = time.perf_counter()
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="decode")
    try:
        for batch in _batches(pool, runner, samples):
            _score(runner, batch, tally)
            seen(len(batch))
    except KeyboardInterrupt:
        tally.interrupted = True
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    tally.seconds = time.perf_counter() - start
    if not tally.answers:
        raise ModelError(_nothing(tally))
    return tally


def as_text(report: dict[str, Any]) -> str:
    """Format the report for a terminal: `Tally.report` with `source`, `fingerprint`, `device` and the like added."""
    done, there = (f"{report[name]:,}" for name in ("images", "folder_images"))
    where = f"at {report['image_size']} px on {report['device']}, in batches of {report['batch_size']}"
    return "\n".join(
        (
            f"images       {done} of {there}{', interrupted' * report['interrupted']}",
            f"top-1        {_percent(report['top1'])}",
            f"top-5        {_percent(report['top5'])}",
            f"calibration  error {report['calibration_error']:.4f}, mean confidence {report['mean_confidence']:.4f}",
            f"speed        {report['images_per_second']:,.1f} images/s with decoding, {where}",
            f"model        {report['source']}, fingerprint {report['fingerprint']}",
            *_not_scored(report["unreadable"]),
        )
    )


def _percent(share: dict[str, float]) -> str:
    value, low, high = (100 * share[part] for part in ("value", "low", "high"))
    return f"{value:.2f} %  (95 % interval {low:.2f} to {high:.2f} %)"


def _not_scored(bad: list[dict[str, str]]) -> Iterator[str]:
    if bad:
        yield f"not scored   {len(bad)} images"
    yield from (f"  {entry['file']}: {entry['reason']}" for entry in bad[:_SHOWN])
    if len(bad) > _SHOWN:
        yield f"  and {len(bad) - _SHOWN} more (--json lists all)"


def check_classifier(config: VimConfig) -> None:
    """Raise ModelError unless the model returns one row of scores for a square RGB image."""
    height, width = config.image_size
    if config.score_function == "sigmoid":
        raise ModelError("this model scores each class by itself, while a folder gives each image one class")
    if config.num_classes == 0 or config.pool == "all":
        raise ModelError("this model does not classify: it has no head, or scores every token")
    if height != width or config.channels != 3:
        raise ModelError(f"only square RGB images can be prepared: the model takes {config.channels}x{height}x{width}")


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % score interval of the proportion right / count (Wilson, 1927)."""
    share, weight = right / count, _Z**2 / count
    center = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return max(0.0, center - half), min(1.0, center + half)


def calibration_error(confidence: Array, right: Array) -> float:
    """Return the expected calibration error: mean difference of confidence and accuracy in ten bins of equal width."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _share(right: int, count: int) -> dict[str, float]:
    low, high = wilson(right, count)
    return {"value": right / count, "low": low, "high": high}


def _nothing(tally: Tally) -> str:
    if tally.interrupted or not tally.bad:
        return "interrupted before the first batch was scored"
    path, reason = tally.bad[0]
    return f"none of the {len(tally.bad)} images could be scored; the first: {path}: {reason}"


_Decoded = tuple[Sample, Array | str]  # pixels, or the reason they are missing


def _batches(pool: ThreadPoolExecutor, runner: Runner, samples: Iterable[Sample]) -> Iterator[list[_Decoded]]:
    """Yield decoded samples in order, decoding a few batches ahead."""
    recipe, waiting, left = runner.vim.preprocess, deque[Future[_Decoded]](), iter(samples)
    while True:
        for sample in islice(left, _AHEAD * runner.max_batch - len(waiting)):
            waiting.append(pool.submit(_decode, recipe, sample))
        if not waiting:
            return
        yield [waiting.popleft().result() for _ in range(min(runner.max_batch, len(waiting)))]


def _decode(recipe: Preprocess, sample: Sample) -> _Decoded:
    try:
        pixels = recipe.read(sample.path)
    except Exception as error:  # Pillow raises many types of errors for damaged files
        return sample, str(error) or type(error).__name__
    if pixels.shape != (recipe.size, recipe.size, 3):  # at sizes up to 32 images are not resized
        return sample, f"is {pixels.shape[1]}x{pixels.shape[0]} px, and at this size nothing is resized"
    return sample, pixels


def _score(runner: Runner, batch: list[_Decoded], tally: Tally) -> None:
    tally.bad += [(sample.path, pixels) for sample, pixels in batch if isinstance(pixels, str)]
    good = [(sample, pixels) for sample, pixels in batch if not isinstance(pixels, str)]
    if not good:
        return
    rows = runner.run(np.stack([pixels for _, pixels in good]), scores=True, cls=False, mean=False)
    assert rows.scores is not None
    samples, finite = [sample for sample, _ in good], rows.finite.astype(bool)
    tally.bad += [(samples[i].path, "the model's answer is not finite") for i in np.flatnonzero(~finite)]
    tally.add(rows.scores[finite], [samples[i].label for i in np.flatnonzero(finite)])
