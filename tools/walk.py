"""Follow one request through the source files: `python -m tools.walk [PHOTO] [--http-workers 2] [--calls]`.

A server of its own runs the shipped demo model. While one photograph is classified, every call of a function in
`service/` and `model/` is recorded (`sys.setprofile`), in all threads of the HTTP process and of its parent; the device
process is left out. Prints the files in the order in which they were entered, and how often control changed file. Of
several requests the one with the fewest changes counts, because timers that run at the same time add changes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
REQUESTS = 10
START_S = 180.0

# Runs at the start of every process of the server. SIGUSR1 begins a recording, SIGUSR2 writes it to a file.
RECORDER = """
import json, os, signal, sys, threading
if not any("worker" in one for one in sys.orig_argv):
    root, calls, on = os.environ["WALK_ROOT"], [], [False]
    roots = (os.path.join(root, "service") + os.sep, os.path.join(root, "model") + os.sep)
    def hook(frame, event, _):
        if event == "call" and on[0] and frame.f_code.co_filename.startswith(roots):
            calls.append((frame.f_code.co_filename[len(root) + 1:], frame.f_code.co_qualname))
    def begin(*_):
        calls.clear()
        on[0] = True
    def end(*_):
        on[0] = False
        path = os.path.join(os.environ["WALK_OUT"], str(os.getpid()))
        with open(path + ".part", "w") as file:
            json.dump(calls, file)
        os.replace(path + ".part", path + ".json")
    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    threading.setprofile(hook)
    sys.setprofile(hook)
    open(os.path.join(os.environ["WALK_OUT"], str(os.getpid()) + ".pid"), "w").close()
"""

Call = tuple[str, str]  # file, function


def jpeg() -> bytes:
    """A JPEG of 500 x 375 pixels and about 60 kB."""
    coarse = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    return file.getvalue()


def changes(calls: Sequence[Call]) -> list[str]:
    """The files that were entered, in order; two in a row always differ."""
    return [file for file, _ in groupby(file for file, _ in calls)]


@contextmanager
def server(root: Path, http_workers: int, out: Path) -> Iterator[str]:
    """The URL of a server that records itself."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (out / "sitecustomize.py").write_text(RECORDER, encoding="utf-8")
    own = {"PYTHONPATH": str(out), "WALK_OUT": str(out), "WALK_ROOT": str(root), "VIM_LOG_LEVEL": "warning"}
    own |= {"VIM_HOST": "127.0.0.1", "VIM_PORT": str(port), "VIM_HTTP_WORKERS": str(http_workers)}
    process = subprocess.Popen([sys.executable, "-m", "service", "serve"], cwd=root, env=os.environ | own)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def walk(url: str, photo: bytes, out: Path) -> dict[int, list[Call]]:
    """The calls of one request, by process id."""
    processes = [int(path.stem) for path in out.glob("*.pid") if _alive(int(path.stem))]
    _signal(processes, signal.SIGUSR1)
    time.sleep(0.02)  # time for the signal handlers to run
    _classify(url, photo)
    time.sleep(0.02)
    _signal(processes, signal.SIGUSR2)
    time.sleep(0.3)
    found = {one: out / f"{one}.json" for one in processes}
    return {one: [(file, name) for file, name in json.loads(path.read_text())] for one, path in found.items()}


def _classify(url: str, photo: bytes) -> None:
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/classify", photo), timeout=30) as answer:
        answer.read()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise SystemExit("the server did not start")


def _alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def _signal(processes: Sequence[int], number: signal.Signals) -> None:
    for one in processes:
        os.kill(one, number)


def main() -> None:
    """Print the shortest walk of several requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path, nargs="?", help="a file; without one a JPEG of 60 kB is made")
    parser.add_argument("--http-workers", type=int, default=1)
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout")
    parser.add_argument("--calls", action="store_true", help="print every function that is called")
    given = parser.parse_args()
    photo = given.photo.read_bytes() if given.photo else jpeg()
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        with server(given.root.resolve(), given.http_workers, out) as url:
            for _ in range(3):
                _classify(url, photo)
            walks = [walk(url, photo, out) for _ in range(REQUESTS)]
    best = min(walks, key=lambda calls: sum(len(changes(one)) for one in calls.values()))
    for process, calls in best.items():
        if calls:
            _print(process, calls, whole=given.calls)
    print(f"{sum(len(changes(one)) for one in best.values())} changes of file in all")


def _print(process: int, calls: Sequence[Call], *, whole: bool) -> None:
    if whole:
        for file, group in groupby(calls, key=lambda call: call[0]):
            print(f"  {file}: {', '.join(name for _, name in group)}")
    else:
        print("  " + " → ".join(changes(calls)))
    files = {file for file, _ in calls}
    print(f"process {process}: {len(changes(calls))} changes of file, {len(files)} files, {len(calls)} calls")


if __name__ == "__main__":
    main()
