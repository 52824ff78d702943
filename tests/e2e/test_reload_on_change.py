"""With VIM_MODEL_POLL_S a server follows the folders of its models."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import serving
from tests.tiny import photo, write_tiny_model

pytestmark = pytest.mark.slow


def fingerprint(client: httpx.Client, model: str) -> str | None:
    """The fingerprint in an answer of this model; None if it is not served."""
    answer = client.post(f"/v1/embed?model={model}", content=photo()).json()
    found: str | None = answer.get("model", {}).get("fingerprint")
    return found


@pytest.mark.parametrize("http_workers", [1, 2])
def test_new_changed_and_removed_folders_are_followed(tmp_path: Path, http_workers: int) -> None:
    """A new version, a new model and a removed one are noticed; a version that cannot be loaded changes nothing."""
    models = tmp_path / "models"
    write_tiny_model(models / "a" / "1", seed=1)
    write_tiny_model(models / "b" / "1", seed=2)
    with (
        serving(tmp_path, model_repository=models, model_poll_s=1, http_workers=http_workers) as server,
        server.client() as client,
    ):
        server.wait_for(lambda: fingerprint(client, "b"))
        first = fingerprint(client, "a")
        write_tiny_model(models / "a" / "2", seed=3)
        server.wait_for(lambda: fingerprint(client, "a") != first)
        second = fingerprint(client, "a")

        (models / "a" / "3").mkdir()
        (models / "a" / "3" / "model.safetensors").write_bytes(b"not tensors")
        server.wait_for(lambda: "a has changed, but cannot be loaded" in server.log)
        assert second == fingerprint(client, "a")

        write_tiny_model(models / "c" / "1", seed=4)
        server.wait_for(lambda: fingerprint(client, "c"))
        shutil.rmtree(models / "b")
        server.wait_for(lambda: fingerprint(client, "b") is None)
