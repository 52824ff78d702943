"""NVIDIA's load generator: it asks for metadata, config and statistics before it sends anything."""

from __future__ import annotations

import base64
import json
import os
import struct
import subprocess
from pathlib import Path

import pytest

from tests.clients.pictures import picture
from tests.clients.servers import NAME, Servers

FOLDER = os.environ.get("CLIENTS_PERF", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="make test-clients fetches perf_analyzer")
LIBRARIES = ("usr/lib/x86_64-linux-gnu", "nvidia/cuda_runtime/lib")


@pytest.mark.parametrize(
    ("how", "address"),
    [(("-i", "http"), "normal"), (("-i", "grpc"), "grpc_normal"), (("-i", "grpc", "--streaming"), "grpc_normal")],
)
def test_it_measures(servers: Servers, tmp_path: Path, how: tuple[str, ...], address: str) -> None:
    """perf_analyzer measures two concurrencies; it sends BYTES unchanged, so the test adds the length before them."""
    (binary,) = Path(FOLDER).glob("*.data/data/bin/perf_analyzer")
    element = struct.pack("<I", len(picture())) + picture()
    content = {"content": {"b64": base64.b64encode(element).decode()}, "shape": [1]}
    inputs = tmp_path / "inputs.json"
    inputs.write_text(json.dumps({"data": [{"image": content}]}))
    done = subprocess.run(
        [
            *(str(binary), "-m", NAME, "-u", getattr(servers, address).removeprefix("http://"), *how),
            *("--input-data", str(inputs), "--shape", "image:1", "--concurrency-range", "1:2"),
            *("--measurement-mode", "count_windows", "--measurement-request-count", "20", "-s", "500", "-r", "10"),
        ],
        env=os.environ | {"LD_LIBRARY_PATH": ":".join(str(Path(FOLDER) / part) for part in LIBRARIES)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert 0 == done.returncode, done.stdout + done.stderr
    assert 2 == done.stdout.count("Inference count:"), done.stdout + done.stderr
    assert "Concurrency: 2, throughput:" in done.stdout, done.stdout + done.stderr
