"""Run `tune`: measure this machine, print which settings suit it and why, and write them to a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.cli.backend import CommandError, Failed
from service.cli.files import find, read
from service.cli.terminal import Progress
from service.cli.tune.advice import Advice, Measured, advise, notes, profile, scale_at
from service.cli.tune.measure import measure
from service.settings import Settings
from service.system import cpus

QUIET, QUIET_SHARE = 0.5, 0.1  # the load average of a quiet machine: at most this, or this for each CPU


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """The arguments of the command."""

    files: Sequence[str]  # images like those of the clients; empty: synthetic images
    wait_s: float  # how long a client waits for its answer at most
    seconds: float  # for each of the measurements
    out: Path | None
    as_json: bool


async def tune(settings: Settings, options: TuneOptions, write: Callable[[str], None], progress: Progress) -> int:
    """Measure, print, write; returns the exit status."""
    images = _images(options, settings)
    if warning := busy(os.getloadavg()[0], cpus.available_cpus()):
        progress.note(warning)
    measured = await measure(settings, images, options.seconds, progress.busy)
    advice = advise(measured, options.wait_s, settings.max_images)
    if options.as_json:
        write(json.dumps(profile(measured, advice), indent=2))
    else:
        write("\n".join(report(measured, advice)))
    if options.out is not None:
        options.out.write_text("\n".join(env_file(measured, advice)) + "\n", encoding="utf-8")
        progress.note(f"settings written to {options.out}")
    if warning:
        progress.note(warning)  # again, beside the advice
    return 0


def busy(load: float, count: int) -> str:
    """A warning if other programs use the machine, else nothing."""
    if load <= max(QUIET, QUIET_SHARE * count):
        return ""
    return (
        f"warning: this machine is busy (load {load:.1f} on {count} CPUs before the measurement), so the rates are too "
        "low and the advice is for a slower machine; run it again when nothing else runs"
    )


def _images(options: TuneOptions, settings: Settings) -> list[bytes]:
    found = [read(file, settings.max_body_bytes) for file in find(options.files)]
    if failed := next((one for one in found if isinstance(one, Failed)), None):
        raise CommandError(f"an image cannot be read: {failed.message}")
    return [one for one in found if isinstance(one, bytes)]


def report(measured: Measured, advice: Sequence[Advice]) -> Iterator[str]:
    """The measurements and the advice, as lines for people."""
    yield f"{measured.model} on {measured.device}, {measured.cpus} CPUs; ready {measured.start_s:.1f} s after the start"
    yield "\ndecoding, by threads:"
    yield from (f"{threads:6}  {rate:8.1f} images/s" for threads, rate in measured.decode.items())
    yield "\nforward passes, by images:"
    for size, seconds in measured.passes.items():
        yield f"{size:6}  {measured.rate(size):8.1f} images/s  {1000 * seconds:8.1f} ms"
    yield f"\nboth at once:  {measured.together:.1f} images/s"
    yield from notes(measured)
    yield ""
    yield from (f"{one.variable}={one.value}\n    {one.reason}" for one in advice)
    batch = next(one.value for one in advice if one.variable == "VIM_MAX_BATCH")
    yield f"\nan autoscaler should aim at {scale_at(batch)} images waiting or running for each server"


def env_file(measured: Measured, advice: Sequence[Advice]) -> Iterator[str]:
    """The settings as lines for `docker run --env-file`, Compose or a shell."""
    yield f"# {measured.model} on {measured.device}: {measured.source}"
    for one in advice:
        yield f"# {one.reason}"
        yield f"{one.variable}={one.value}"
