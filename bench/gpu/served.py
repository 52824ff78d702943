"""The service end to end: the real server on the device, and a closed loop over HTTP from another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.gpu import jobs
from bench.gpu.cases import Plan, case
from bench.gpu.entry import SERVICE, Entry, SkippedError, Values

CLIENTS = 256
HTTP_WORKERS = 6
LOAD_S = 60
SIZE, PHOTOGRAPHS = "640 x 480", 8
WHEELS = "wheels"


def entries(plan: Plan) -> list[Entry]:
    """Return the one entry."""
    seconds = 8 if plan.dry_run else LOAD_S + 22
    model = "miniature" if plan.dry_run else "vim-tiny"
    name = f"{model}, {CLIENTS} clients"
    return [Entry(SERVICE, name, partial(_served, plan, model), seconds, "triton", case("tiny", torch.float16))]


def _served(plan: Plan, model: str) -> Values:
    """Images a second, latency, CPU milliseconds an image, and how busy the device was."""
    _use_wheels(plan)
    from bench import service
    from bench.serve import weights
    from bench.serve.load import Load

    os.environ.update(_settings(plan))
    corpus = _photographs(plan.work / "corpus")
    found: Values = {}
    try:
        with service.server(weights.source(model, plan.work), 8 if plan.dry_run else 64) as (url, pid, start_s):
            port = int(url.rpartition(":")[2])
            load = Load(port, "/v1/classify", str(corpus), {SIZE: 1.0}, 0.0, patience_s=10)
            load = replace(load, clients=8 if plan.dry_run else CLIENTS)
            _send(replace(load, seconds=0.2 if plan.dry_run else 2))  # the first requests run with cold caches
            found = _watched(pid, lambda: _send(replace(load, seconds=1 if plan.dry_run else LOAD_S)))
            found |= {"start_to_ready_s": round(start_s, 1), "clients": load.clients, **_info(url)}
    except subprocess.TimeoutExpired as error:  # the measurement is kept even if the server does not end
        if not found:
            raise
        found["end"] = str(error)
    return found


def _photographs(folder: Path) -> Path:
    from bench.photographs import photograph

    (folder / SIZE).mkdir(parents=True, exist_ok=True)
    for seed in range(PHOTOGRAPHS):
        (folder / SIZE / f"{seed}.jpg").write_bytes(photograph(seed))
    return folder


def _settings(plan: Plan) -> dict[str, str]:
    device = {"VIM_DEVICE": "cpu", "VIM_THREADS": "1"} if plan.dry_run else {"VIM_DEVICE": "cuda", "VIM_SCAN": "triton"}
    workers = 1 if plan.dry_run else HTTP_WORKERS
    return device | {"VIM_HTTP_WORKERS": str(workers), "VIM_QUEUE_IMAGES": str(2 * CLIENTS), "TRITON_INTERPRET": "0"}


def _use_wheels(plan: Plan) -> None:
    """Make the packages that the service imports available to it and to this process."""
    folder = plan.work / WHEELS
    if jobs.outcome(plan.jobs, WHEELS) is not None or folder.is_dir():
        jobs.wait_for(plan.jobs, WHEELS, 60)
        sys.path.append(str(folder))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(folder))))
    try:
        import fastapi  # noqa: F401
    except ImportError as error:
        raise SkippedError(f"the service cannot be imported: {error}") from None


def _send(load: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.serve.load"]
    limit = load.warm_s + load.seconds + load.patience_s + 15
    text = json.dumps(asdict(load))
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=limit)
    records = json.loads(done.stdout)
    counted = [
        (end - due, status)
        for due, end, status in zip(records["due"], records["end"], records["status"], strict=True)
        if due >= 0 and end <= load.seconds
    ]
    good = sorted(seconds for seconds, status in counted if status == 200)
    if not good:
        raise RuntimeError(f"no answer was good; the last one: {records['body'][:300]}")
    return {
        "images_per_s": round(len(good) / load.seconds, 1),
        "images": len(good),
        "all_images": sum(status == 200 for status in records["status"]),
        "not_answered_well": len(counted) - len(good),
        **{f"p{part}_ms": round(1000 * good[int(part / 100 * (len(good) - 1))], 1) for part in (50, 99)},
    }


def _watched(pid: int, run: Callable[[], dict[str, Any]]) -> Values:
    """Run a load and measure the device's utilisation; add the CPU time of the server and all its processes."""
    with _Meter() as meter:
        before = _cpu_s(pid)
        found = run()
        used = _cpu_s(pid) - before
    per_image = round(1000 * used / found.pop("all_images"), 3)
    return {**found, "cpu_ms_per_image": per_image, **meter.summary()}


def _cpu_s(pid: int) -> float:
    import psutil

    first = psutil.Process(pid)
    return float(sum(sum(one.cpu_times()[:2]) for one in [first, *first.children(recursive=True)]))


class _Meter:
    """The driver's own figure, the part of the time in which a kernel ran, five times a second."""

    def __init__(self) -> None:
        self._percent: list[float] = []
        self._process: subprocess.Popen[str] | None = None
        self._reason = ""

    def __enter__(self) -> _Meter:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
        try:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError as error:
            self._reason = str(error)
            return self
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._thread.join(5)

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._percent += [float(line) for line in self._process.stdout if line.strip().isdigit()]

    def summary(self) -> Values:
        """Return the mean, or the reason why there is none."""
        if not self._percent:
            return {"device_busy_percent": None, "device_busy_why_not": self._reason or "nvidia-smi printed nothing"}
        return {"device_busy_percent": round(sum(self._percent) / len(self._percent), 1)}


def _info(url: str) -> Values:
    """The description of the device by the service: dtype, graphs, path."""
    import httpx

    return {"devices": httpx.get(f"{url}/info", timeout=20).json().get("devices")}


def install_wheels(wheels: list[Path], target: Path) -> list[str]:
    """Return the command that installs wheels that were carried; it downloads nothing."""
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"]
    return [*pip, "--quiet", "--target", str(target), "--upgrade", *map(str, wheels)]
