"""`python -m bench.heads`: what custom heads add to a request in the HTTP process, by their number.

Measured are the scores of all heads of one image, their `in_domain`, the best classes, and the JSON of the answer. The
forward pass is the same for any number of heads.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from model.heads.domain import Domain
from model.heads.head import Head
from service.api import responses
from service.api.schemas import ClassifyOptions
from service.engine.engine import Answer
from service.heads.store import NamedHead
from service.jobs import Result, Timings
from service.status import DeviceInfo, ModelInfo
from service.telemetry.metrics import Metrics

NUMBERS = (0, 1, 10, 50)
CLASSES, RANK, QUANTILES = 10, 64, 256


def named_head(number: int, dim: int) -> NamedHead:
    """A head of ten classes with a domain, of random numbers."""
    random = np.random.default_rng(number)
    arrays = {
        "directions": random.normal(size=(RANK, dim)),
        "offsets": random.normal(size=RANK),
        "centers": random.normal(size=(CLASSES, dim)),
        "constants": random.normal(size=CLASSES),
        "rest": [100.0],
        "table": np.sort(random.normal(size=QUANTILES)),
    }
    weight = random.normal(size=(CLASSES, dim)).astype(np.float32)
    labels = tuple(f"class {index}" for index in range(CLASSES))
    head = Head(weight, np.zeros(CLASSES, np.float32), labels, "0" * 12, domain=Domain.of(arrays))
    return NamedHead(f"head-{number}", head)


def answer_of(dim: int, images: int, *, features: bool) -> Answer:
    """The answer of a forward pass: features for heads, or the scores of the model's own ten classes."""
    random = np.random.default_rng(0)
    values = random.normal(size=(images, dim if features else CLASSES)).astype(np.float32)
    model = ModelInfo(
        name="bench", family="vim", fingerprint="0" * 12, classes=CLASSES, scores="softmax", embedding_dim=dim,
        mean_embedding_dim=dim, image_size=224, preprocess={}, labels=tuple(map(str, range(CLASSES))), labels_source="",
        in_domain=False, source="", weights="", parameters=0, config={}, assumptions=(), dtype="float32",
        device=DeviceInfo("cpu"), scan={}, versions={},
    )  # fmt: skip
    outcomes = [Result(row, 0.0, 0.01, images) for row in values]
    return Answer(list(outcomes), Timings(), model, "1", 0, [images])


def seconds(dim: int, images: int, number: int, rounds: int) -> float:
    """The median time of the answer of one request with this number of heads."""
    heads = [named_head(one, dim) for one in range(number)]
    answer, metrics = answer_of(dim, images, features=number > 0), Metrics(queue_capacity=1)
    options, times = ClassifyOptions(), []
    for _ in range(rounds):
        start = time.perf_counter()
        responses.classifications(answer, heads, options, metrics)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.heads", description=__doc__)
    parser.add_argument("--dims", type=int, nargs="+", default=[160, 192, 384, 768])
    parser.add_argument("--images", type=int, default=1, help="images of a request (default 1)")
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    print(f"{CLASSES} classes each, {options.images} image(s) a request, median of {options.rounds}, milliseconds")
    print(f"{'D':>5}  " + "  ".join(f"{f'{number} heads':>9}" for number in NUMBERS))
    for dim in options.dims:
        times = [1000 * seconds(dim, options.images, number, options.rounds) for number in NUMBERS]
        print(f"{dim:5}  " + "  ".join(f"{one:9.3f}" for one in times))


if __name__ == "__main__":
    main()
