"""schemathesis generates requests from the OpenAPI document: no 5xx, and answers as the document says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import ROOT, Server, serving
from tests.tiny import write_tiny_model

KEY = "a-key-of-the-fuzz-test"
LONGEST_S = 600
CONFIG = Path(__file__).parent / "fuzz" / "schemathesis.toml"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server with an API key, so that every operation is also requested without a key."""
    model = write_tiny_model(tmp_path / "tiny")
    with serving(tmp_path, model=model, api_keys=KEY) as running:
        yield running


SEEDS = os.environ.get("FUZZ_SEEDS", "").split() or ["20", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="pip install '.[fuzz]'")
def test_answers_are_as_the_openapi_document_says(server: Server, tmp_path: Path, seed: str) -> None:
    """All of schemathesis's checks: status, content type, schema, keys, methods; valid and invalid requests alike.

    The seed chooses the requests; FUZZ_SEEDS names others.
    """
    document = tmp_path / "openapi.json"
    document.write_bytes(httpx.get(f"{server.url}/openapi.json", headers={"X-API-Key": KEY}).content)

    schemathesis = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)]
    run = subprocess.run(
        [*schemathesis, "run", str(document), "--url", server.url, "--seed", seed],
        cwd=ROOT,
        env={"FUZZ_KEY": KEY, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        text=True,
        capture_output=True,
        timeout=LONGEST_S,
        check=False,
    )

    assert 0 == run.returncode, run.stdout + run.stderr
    assert '"unforeseen"' not in server.log
