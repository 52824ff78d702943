"""Recommend settings for a machine that was measured, each with its reason. Measures nothing itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

GOOD_ENOUGH = 0.95  # of the best rate: a larger batch adds little, and every request in it takes longer
PATIENCE_PER_PASS = 4  # a pass may take this part of the longest wait: an image may wait for two passes
FLAT = 1.25  # a pass of eight images that takes at most this many times as long as one


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements of one machine with one model. Rates are images per second."""

    model: str
    device: str  # cpu, or the name of the GPU
    cpus: int
    start_s: float  # from the start until ready
    decode: Mapping[int, float]  # threads -> rate, with an idle device
    passes: Mapping[int, float]  # batch size -> seconds of a forward pass, without decoding
    together: float  # rate of decoding and model at once, as under full load
    source: str = ""  # date, CPUs and images of the measurement

    @property
    def on_cpu(self) -> bool:
        """True when decoding and the model share the cores."""
        return self.device == "cpu"

    def rate(self, size: int) -> float:
        """Rate of the device alone, in batches of this size."""
        return size / self.passes[size]

    @property
    def device_rate(self) -> float:
        """Rate of the device alone, in batches of the best size."""
        return max(map(self.rate, self.passes))

    @property
    def decode_rate(self) -> float:
        """Rate of decoding alone, with the best number of threads."""
        return max(self.decode.values())

    @property
    def bound(self) -> str:
        """The part that limits the rate; where both share the cores, the one that takes more time."""
        return "decode" if self.decode_rate < self.device_rate else "device"


@dataclass(frozen=True, slots=True)
class Advice:
    """One setting and its reason."""

    variable: str
    value: int
    reason: str


def advise(measured: Measured, wait_s: float, max_images: int = 1) -> list[Advice]:
    """Settings for clients that wait at most `wait_s` and send up to `max_images` in a request."""
    batch = _batch(measured, wait_s)
    return [batch, _queue(measured, wait_s, batch.value, max_images), _wait(measured), *_threads(measured)]


def scale_at(batch: int) -> int:
    """Images waiting or running per server from which on a fleet should grow: see docs/operate/sizing.md."""
    return max(1, batch // 2)


def notes(measured: Measured) -> Iterator[str]:
    """Remarks that are not settings."""
    device, decode = f"{measured.device_rate:.3g}", f"{measured.decode_rate:.3g}"
    if measured.bound == "device":
        more = "More CPUs help, in this server or in others" if measured.on_cpu else "More or faster devices help"
        yield f"The model is the limit: {device} images/s against {decode} of decoding. {more}."
        return
    yield (
        f"Decoding is the limit: {decode} images/s against {device} of the model. More CPUs help, and smaller images; "
        "VIM_DECODE=fast is quicker with large JPEG files, and changes the fingerprint."
    )


def profile(measured: Measured, advice: list[Advice]) -> dict[str, Any]:
    """A server that runs with this advice, for programs and for `tools.simulate_fleet`.

    The simulation has no decoding. So the time of a pass is the longer of two: the measured one, and the time of its
    images at the rate of decoding and model together.
    """
    settings = {one.variable: one.value for one in advice}
    largest = settings["VIM_MAX_BATCH"]
    passes = {size: max(s, size / measured.together) for size, s in measured.passes.items() if size <= largest}
    return {
        "name": f"{measured.model} on {measured.device}",
        "measured": measured.source,
        "cpus": measured.cpus,
        "start_seconds": round(measured.start_s, 2),
        "batch_seconds": {str(size): round(seconds, 5) for size, seconds in passes.items()},
        "queue_images": settings["VIM_QUEUE_IMAGES"],
        "images_per_s": round(measured.together, 2),
        "bound": measured.bound,
        "decode_images_per_s": {str(threads): round(rate, 1) for threads, rate in measured.decode.items()},
        "device_batch_seconds": {str(size): round(seconds, 5) for size, seconds in measured.passes.items()},
        "settings": settings,
        "scale_at_images": scale_at(largest),
    }


def _batch(measured: Measured, wait_s: float) -> Advice:
    sizes = sorted(measured.passes)
    quick = [size for size in sizes if measured.passes[size] <= wait_s / PATIENCE_PER_PASS] or sizes[:1]
    best = max(map(measured.rate, quick))
    size = next(size for size in quick if measured.rate(size) >= GOOD_ENOUGH * best)
    reason = f"{measured.rate(size):.3g} images/s, {100 * measured.rate(size) / best:.0f} % of the best size's"
    if len(quick) < len(sizes):
        slow = sizes[len(quick)]
        reason += f"; a pass of {slow} takes {_ms(measured.passes[slow])}, too much of {_ms(wait_s)}"
    return Advice("VIM_MAX_BATCH", size, f"{reason}; a pass takes {_ms(measured.passes[size])}")


def _queue(measured: Measured, wait_s: float, batch: int, max_images: int) -> Advice:
    rate, seconds = measured.together, measured.passes[batch]
    fits = int((wait_s - seconds) * rate)
    least = max(2 * batch, max_images)
    if fits < least:
        why = "one batch running and one waiting" if least == 2 * batch else "one request may hold them: VIM_MAX_IMAGES"
        return Advice(
            "VIM_QUEUE_IMAGES",
            least,
            f"{why}; at {rate:.3g} images/s the last waits {_ms(least / rate + seconds)}",
        )
    reason = f"at {rate:.3g} images/s the last of them is answered within {_ms(wait_s)}; more would be too late"
    return Advice("VIM_QUEUE_IMAGES", fits, reason)


def _wait(measured: Measured) -> Advice:
    company = max(size for size in measured.passes if size <= 8)
    ratio = measured.passes[company] / measured.passes[1]
    if company > 1 and ratio < FLAT:
        reason = f"{company} images take {ratio:.2f} times as long as one, but under load batches fill without waiting"
    else:
        reason = f"{company} images take {ratio:.2g} times as long as one: waiting for more images gains nothing"
    return Advice("VIM_MAX_WAIT_MS", 0, reason)


def _threads(measured: Measured) -> Iterator[Advice]:
    """On a CPU the model uses the same number of threads, and the default, the CPU quota, is right."""
    enough = min(n for n, rate in measured.decode.items() if rate >= GOOD_ENOUGH * measured.decode_rate)
    if not measured.on_cpu and enough < measured.cpus:
        yield Advice("VIM_THREADS", enough, f"more than {enough} do not decode faster here")


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
