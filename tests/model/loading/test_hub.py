"""Weights by name, from a stand-in for the hub on 127.0.0.1: downloaded once, completely or not at all."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from model import Labels, load
from model.errors import ConfigError, WeightsError
from model.loading.hub import Hub
from model.loading.released import RELEASED, Reference
from model.loading.source import resolve
from tests.model.loading.checkpoints import TINY, rope_state, state
from tests.model.loading.fake_hub import FakeHub, serve

REPO = "someone/tiny"
ROOT = Path(__file__).parents[3]


def pth(content: Any) -> bytes:
    """Write a checkpoint with torch.save and return its bytes."""
    written = io.BytesIO()
    torch.save(content, written)
    return written.getvalue()


STATE = state()
BODY = pth(STATE)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """An empty hub that HF_ENDPOINT points to; the library does not wait between attempts."""
    with serve() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setattr(time, "sleep", lambda _: None)
        yield found


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return the directory for downloads."""
    return tmp_path / "cache"


def test_a_reference_is_fetched_once(hub: FakeHub, cache: Path) -> None:
    """The file is downloaded into the cache; the second time only its ETag is requested."""
    hub.add(REPO, weights_pth=BODY)

    first = load(f"{REPO}:weights.pth", cache_dir=cache, device="cpu")
    second = load(f"{REPO}:weights.pth", cache_dir=cache, device="cpu")

    assert first.fingerprint == second.fingerprint
    assert first.config == TINY
    assert [line.split()[0] for line in hub.requests] == ["HEAD", "GET", "HEAD"]


def test_offline_reads_the_cache_and_asks_nobody(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, by argument or HF_HUB_OFFLINE, cached files load without requests, and missing ones are an error."""
    hub.add(REPO, weights_pth=BODY)
    for source in (REPO, f"{REPO}:weights.pth"):
        with pytest.raises(WeightsError, match=r"of someone/tiny \(revision main\) is not in the cache .* is off"):
            load(source, cache_dir=cache, offline=True)
    assert hub.requests == []

    resolve(REPO, cache)
    hub.requests.clear()
    by_argument = load(REPO, cache_dir=cache, offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    by_variable = load(f"{REPO}:weights.pth", cache_dir=cache)

    assert hub.requests == []
    assert by_argument.fingerprint == by_variable.fingerprint


def test_a_hub_out_of_reach_leaves_the_cache(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network a cached file is loaded; without the file the error says what was tried."""
    hub.add(REPO, weights_pth=BODY)
    kept = resolve(REPO, cache)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    assert resolve(REPO, cache) == kept
    assert resolve(f"{REPO}:weights.pth", cache) == kept
    with pytest.raises(WeightsError, match=r"http://127\.0\.0\.1:9 cannot be reached.*other\.pth of someone/tiny"):
        resolve(f"{REPO}:other.pth", cache)


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_released_names_lead_to_their_file(
    name: str, hub: FakeHub, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Name, file and full reference give the same model, with ImageNet's labels and without assumptions."""
    released = RELEASED[name]
    size = int(name.rpartition("-")[2]) if name.endswith(("448", "576")) else 224
    changes: dict[str, Any] = {"patch_size": 16, "num_classes": 1000, "image_size": (size, size)}
    stride = 8 if name.endswith("plus") else 16
    if released.family == "mamba-reg":
        changes |= {"family": "mamba-reg", "class_token": "spread", "spread_tokens": 12, "neck_reduction": 2}
    tensors = rope_state(stride=stride, **changes) if "73p1" in name else state(stride=stride, **changes)
    hub.repos[released.repo] = {released.file: pth({"model": tensors, "model_ema": tensors})}

    with caplog.at_level(logging.INFO, "vim.model"):
        vim = load(name, cache_dir=cache, device="cpu")

    first: dict[str, Any] = {"class_token": "first", "divide_out": False}
    differs: dict[str, Any] = {}
    if "73p1" in name:
        differs = first | {"rope": True, "rope_residual": True}
    elif name.startswith("videomamba"):
        differs = first | {"family": "videomamba"}
    assert vim.config == TINY.replace(stride=stride, **changes, **differs)
    assert vim.assumptions == ()
    assert vim.labels == Labels.imagenet()
    assert ("EMA weights" in caplog.text) == (name == "vim-base")
    same = load(f"{released.repo}:{released.file}", cache_dir=cache, offline=True, device="cpu")
    assert (same.fingerprint, same.assumptions) == (vim.fingerprint, ())


def test_another_family_than_the_released_models_is_refused(hub: FakeHub, cache: Path) -> None:
    """A family other than that of the released model is refused."""
    released = RELEASED["videomamba-tiny"]
    hub.repos[released.repo] = {released.file: pth(state(patch_size=16, image_size=(224, 224), num_classes=1000))}

    with pytest.raises(ConfigError, match="'vim' was asked for, but videomamba-tiny is 'videomamba'"):
        load("videomamba-tiny", family="vim", cache_dir=cache)


def test_what_is_known_never_beats_a_tensor(hub: FakeHub, cache: Path) -> None:
    """For another file under a released name the tensors decide, and an impossible stride is ignored."""
    released = RELEASED["vim-tiny-plus"]
    tensors = state(patch_size=16, stride=16, image_size=(224, 224), num_classes=1000, class_token="double")
    hub.repos[released.repo] = {released.file: pth(tensors)}

    vim = load("vim-tiny-plus", cache_dir=cache, device="cpu")

    assert (vim.config.stride, vim.config.class_token) == (16, "double")
    assert "stride = 16" in vim.assumptions[0]


def test_a_path_beats_a_name(hub: FakeHub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An existing file called vim-tiny, or a folder named like a repository, is loaded instead of a download."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vim-tiny").write_bytes(BODY)
    (tmp_path / "someone" / "tiny").mkdir(parents=True)
    (tmp_path / "someone" / "tiny" / "a.pth").write_bytes(BODY)

    assert resolve("vim-tiny", cache).weights == Path("vim-tiny")
    assert resolve(REPO, cache).weights == Path("someone/tiny/a.pth")
    assert hub.requests == []


def directory() -> dict[str, bytes | Path]:
    """A repository with the files that `model convert` writes."""
    config = TINY.replace(class_token="first").to_dict()
    labels = ["ant", "bee", "cat", "dog", "eel"]
    return {
        "README.md": b"hello",
        "config.json": json.dumps(config).encode(),
        "labels.json": json.dumps(labels).encode(),
        "model.safetensors": save(STATE),
        "old.pth": BODY,
    }


def test_a_repository_is_a_directory(hub: FakeHub, cache: Path) -> None:
    """config.json, labels.json and model.safetensors are downloaded; other files are not."""
    hub.repos[REPO] = directory()

    vim = load(f"{REPO}@v1", cache_dir=cache, device="cpu")

    assert (vim.config.class_token, vim.labels[2], vim.assumptions) == ("first", "cat", ())
    fetched = {line.rpartition("/")[2] for line in hub.requests if line.startswith("GET /someone")}
    assert fetched == {"config.json", "labels.json", "model.safetensors"}
    assert load(f"{REPO}@v1", cache_dir=cache, offline=True).fingerprint == vim.fingerprint


def test_a_revision_is_another_entry(hub: FakeHub, cache: Path) -> None:
    """Branch, tag and commit are separate cache entries; offline only downloaded ones are available."""
    hub.add(REPO, weights_pth=BODY)

    assert "/" + "b" * 40 + "/" in str(resolve(f"{REPO}@v1:weights.pth", cache).weights)
    assert resolve(f"{REPO}@{'b' * 40}:weights.pth", cache, offline=True).weights.is_file()
    with pytest.raises(WeightsError, match="revision main"):
        resolve(f"{REPO}:weights.pth", cache, offline=True)


def test_several_files_must_be_told_apart(hub: FakeHub, cache: Path) -> None:
    """The error lists the files of weights, and nothing is downloaded."""
    hub.add(REPO, a_pth=BODY, b_pth=BODY, README_md=b"")

    with pytest.raises(WeightsError, match=r"holds several files of weights \(a\.pth, b\.pth\): name the one"):
        resolve(REPO, cache)
    hub.repos["someone/empty"] = {"README.md": b""}
    with pytest.raises(WeightsError, match=r"holds no weights"):
        resolve("someone/empty", cache)


REFUSALS = {
    "no repository": ("nobody/nothing", r"no path 'nobody/nothing' here, and http://127\S+ has no model repository"),
    "no repository of the file": ("nobody/nothing:a.pth", r"has no model repository of that name that you can access"),
    "no file": (f"{REPO}:b.pth", r"someone/tiny has no file 'b\.pth' at revision main; it has weights\.pth"),
    "no revision": (f"{REPO}@v9:weights.pth", r"someone/tiny has no revision 'v9': give a branch, a tag"),
    "no revision to list": (f"{REPO}@v9", r"someone/tiny has no revision 'v9'"),
    "gated": ("someone/gated:weights.pth", r"someone/gated is gated: accept its terms .* HF_TOKEN"),
    "not weights": (f"{REPO}:README.md", r"README\.md is not a file of weights"),
    "bad name": ("a--b/c:a.pth", r"'a--b/c' cannot be the name of a repository"),
    "mistyped name": ("vim-tny", r"vim-tny does not exist \(did you mean 'vim-tiny'\?\); give a directory"),
    "mistyped path": ("weights/vim.pth", r"weights/vim\.pth does not exist; give a directory"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_is_not_there_is_explained(kind: str, hub: FakeHub, cache: Path) -> None:
    """Each error says what to do; a path to a missing file causes no request."""
    hub.add(REPO, weights_pth=BODY)
    hub.add("someone/gated", weights_pth=BODY)
    hub.gated.add("someone/gated")
    source, message = REFUSALS[kind]

    with pytest.raises(WeightsError, match=message):
        resolve(source, cache)

    assert kind not in ("mistyped name", "mistyped path", "bad name", "not weights") or hub.requests == []


def test_a_hub_out_of_order_is_explained(hub: FakeHub, cache: Path) -> None:
    """Server errors, and a web page in place of the file, are explained."""
    hub.add(REPO, weights_pth=BODY)
    hub.broken = 500
    with pytest.raises(WeightsError, match=r"cannot be reached, or is not a hub .*500.* not in the cache"):
        resolve(f"{REPO}:weights.pth", cache)
    with pytest.raises(WeightsError, match=r"answered 500 when asked for someone/tiny; try again later"):
        resolve(REPO, cache)
    hub.broken, hub.portal = None, True
    with pytest.raises(WeightsError, match=r"is not a hub \(.*does not seem to be served by a Hugging Face Hub"):
        resolve(f"{REPO}:weights.pth", cache)


def loadable(cache: Path) -> list[Path]:
    """Return the files that a later start could use as weights."""
    return list(cache.rglob("snapshots/*/*"))


def test_half_a_download_is_never_loaded(hub: FakeHub, cache: Path) -> None:
    """A download that fails half-way is an error and leaves no file; a later attempt downloads the whole file."""
    hub.add(REPO, weights_pth=BODY)
    hub.cut_after = len(BODY) // 2
    with pytest.raises(WeightsError, match=r"download of weights\.pth .*failed.*no part of it was kept; try again"):
        load(f"{REPO}:weights.pth", cache_dir=cache)

    assert loadable(cache) == []
    with pytest.raises(WeightsError, match="is not in the cache"):
        load(f"{REPO}:weights.pth", cache_dir=cache, offline=True)
    hub.cut_after = None
    assert load(f"{REPO}:weights.pth", cache_dir=cache).config == TINY


def test_a_killed_download_is_never_loaded(hub: FakeHub, cache: Path) -> None:
    """SIGKILL during a download leaves a file with a temporary name, which is never used as the file."""
    hub.add(REPO, weights_pth=bytes(24 << 20))  # the library writes 10 MiB at a time
    hub.stall_after = 12 << 20
    code = f"from model.loading.hub import *; Hub({str(cache)!r}).download(Reference({REPO!r}), 'weights.pth')"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"HF_ENDPOINT": hub.url})
    while process.poll() is None and not any(part.stat().st_size for part in cache.rglob("*.incomplete")):
        pass
    process.kill()
    process.wait()

    assert [part.suffix for part in cache.rglob("blobs/*")] == [".incomplete"]
    assert loadable(cache) == []
    with pytest.raises(WeightsError, match="is not in the cache"):
        resolve(f"{REPO}:weights.pth", cache, offline=True)


def test_damage_on_the_way_is_noticed(hub: FakeHub, cache: Path) -> None:
    """A file of the right length with wrong bytes is detected by the hub's sha256."""
    hub.add(REPO, weights_pth=BODY)
    hub.flip = True

    with pytest.raises(WeightsError, match=r"weights\.pth arrived damaged \(sha256 [0-9a-f]{64}, the hub says"):
        resolve(f"{REPO}:weights.pth", cache)
    assert loadable(cache) == []


def test_a_cache_that_cannot_be_written_is_named(hub: FakeHub, tmp_path: Path) -> None:
    """The error names the cache if a file exists in place of its directory."""
    hub.add(REPO, weights_pth=BODY)
    (tmp_path / "cache").write_text("")

    with pytest.raises(WeightsError, match=r"cannot keep weights\.pth in the cache \(.*VIM_CACHE_DIR names another"):
        resolve(f"{REPO}:weights.pth", tmp_path / "cache")


def test_a_local_path_never_imports_the_library(tmp_path: Path) -> None:
    """Local paths and unknown names do not import huggingface_hub, and telemetry is off."""
    (tmp_path / "a.pth").write_bytes(BODY)
    code = (
        "import sys; from model import load; load('a.pth'); print('huggingface_hub' in sys.modules);"
        "from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.split() == ["False", "True"]


def test_a_hub_remembers_where(tmp_path: Path) -> None:
    """`~` is expanded to the home directory; without a directory the library's own cache is used."""
    assert Hub("~/x").cache_path == Path.home() / "x"
    assert Hub().cache_path is None
    assert Reference("a/b").revision == "main"
