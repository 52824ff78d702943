"""The Dockerfile, checked without Docker: by hadolint, and by reading the file."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from model.jit.levels import MACHINE_CODE
from service.settings import Settings, variable
from tests.deploy.dockerfile import ROOT, copied, environment, ignored, last, lineage, stages, tool

TARGETS = ("cpu", "cuda")
SETTINGS = {variable(name) for name in Settings.model_fields}


@pytest.mark.skipif(tool("hadolint") is None, reason="hadolint is not installed (extra: deploy)")
def test_hadolint_finds_nothing() -> None:
    """hadolint reports neither an error nor a warning for the Dockerfile."""
    run = subprocess.run([str(tool("hadolint")), "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "")


@pytest.mark.parametrize("target", TARGETS)
def test_runs_as_a_fixed_unprivileged_number(target: str) -> None:
    """The image runs as a user number, since Kubernetes' runAsNonRoot refuses a user name."""
    user = last(target, "USER")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)


@pytest.mark.parametrize("target", TARGETS)
def test_sets_only_known_settings(target: str) -> None:
    """The image sets only VIM_ variables that the server knows; the server refuses others."""
    ours = {name: text for name, text in environment(target).items() if name.startswith("VIM_")}
    assert ours.keys() <= SETTINGS
    settings = Settings.load(ours)
    assert settings.host == "0.0.0.0"
    assert f"EXPOSE {settings.port}" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("target", TARGETS)
def test_everything_written_goes_to_the_two_writable_paths(target: str) -> None:
    """Caches lie in the volume and the home directory in /tmp, so the root can be read-only."""
    places = environment(target)
    caches = [value for name, value in places.items() if "CACHE" in name and value.startswith("/")]
    assert len(caches) >= 4
    assert all(f"{value}/".startswith("/cache/") for value in [*caches, places["HF_HOME"]])
    assert places["HOME"] == "/tmp"
    assert last(target, "VOLUME") == places["VIM_CACHE_DIR"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_cache_belongs_to_the_services_user(target: str) -> None:
    """Others cannot write to /cache, where code is kept that is executed; group 0 is OpenShift's."""
    user, _, _ = last(target, "USER").partition(":")

    assert ("RUN", f"install -d -o {user} -g 0 -m 0770 {last(target, 'VOLUME')}") in lineage(target)


@pytest.mark.parametrize("target", TARGETS)
def test_holds_code_for_common_cpus(target: str) -> None:
    """The machine code lies where the program looks for it, and is not copied from a checkout."""
    place = f"/app/{MACHINE_CODE.relative_to(ROOT).as_posix()}"

    assert ("COPY", f"--from=machine-code-{target} /machine_code {place}") in lineage(target)
    assert ignored(MACHINE_CODE.relative_to(ROOT).as_posix())


def test_base_images_are_named_by_digest() -> None:
    """Both base images are arguments, so that a build can name others, and have the digest of an index."""
    text = (ROOT / "Dockerfile").read_text()
    images = dict(re.findall(r"^ARG (BASE|TOOLKIT)=(\S+)$", text, re.MULTILINE))

    assert {"BASE", "TOOLKIT"} == images.keys()
    assert all(re.fullmatch(r"\S+:\S+@sha256:[0-9a-f]{64}", image) for image in images.values())
    external = {stage.base for stage in stages().values()} - stages().keys()
    assert {"${BASE}", "${TOOLKIT}"} == external


def test_buildah_of_debian_12_knows_every_option() -> None:
    """`--start-interval` needs Docker 25 or buildah 1.39."""
    assert all("--start-interval=" not in rest for stage in stages().values() for _, rest in stage.instructions)


@pytest.mark.parametrize("target", TARGETS)
def test_starts_without_a_shell(target: str) -> None:
    """The entry point has the exec form, so the server is process 1 and receives SIGTERM."""
    assert json.loads(last(target, "ENTRYPOINT")) == ["python", "-m", "service"]
    assert json.loads(last(target, "CMD")) == ["serve"]
    assert last(target, "STOPSIGNAL") == "SIGTERM"
    health = last(target, "HEALTHCHECK")
    assert json.loads(health[health.index("CMD") + 3 :]) == ["python", "-m", "service.server.healthcheck"]


def test_builds_the_cpu_image_unless_told_otherwise() -> None:
    """A build without --target makes the CPU image, since `cpu` is the last stage."""
    assert list(stages())[-1] == "cpu"


@pytest.mark.parametrize("source", sorted(set(copied())))
def test_copies_what_exists_and_is_sent(source: str) -> None:
    """Each path that the Dockerfile copies exists and is not excluded by .dockerignore."""
    if source == "models/demo" and not (ROOT / source / "model.safetensors").exists():
        pytest.skip("the demo model is not there yet")
    assert (ROOT / source).exists()
    assert not ignored(source)


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".env",
        ".venv/bin/python",
        "models/other/model.safetensors",
        "service/__pycache__/app.pyc",
        "service/.env",
        "tests/tiny.py",
        "client/vim_client/client.py",
        "README.md",
    ],
)
def test_sends_nothing_else(path: str) -> None:
    """.dockerignore excludes secrets, caches, other weights and files that the image does not need."""
    assert ignored(path)


def test_pins_live_in_the_constraint_files() -> None:
    """The Dockerfile names packages without versions; the constraint files pin them."""
    text = (ROOT / "Dockerfile").read_text()
    assert "==" not in text.replace("'==", "")
    installs = re.findall(r"pip --python \S+ (?:install|wheel)(?:.*\\\n)*.*", text)
    assert len(installs) == 5
    assert all("constraints-" in install or "--no-index" in install for install in installs)


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_both_machines_share_one_list_of_versions(name: str) -> None:
    """Both constraint files include the common one and pin the same torch."""
    lines = _pins(ROOT / f"constraints-{name}.txt")
    assert "-c constraints.txt" in lines
    assert "torch==2.13.0" in lines
    assert not any(line.startswith("torch==") for line in _pins(ROOT / "constraints.txt"))


def test_the_extra_names_the_kernels_that_are_compiled() -> None:
    """The mamba-ssm extra and constraints-cuda.txt name the same versions."""
    pins = _pins(ROOT / "constraints-cuda.txt")
    extra = re.search(r'^mamba-ssm = \["(.*)", "(.*)"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert extra is not None
    assert {*extra.groups(), "triton==3.7.1"} <= set(pins)


def test_the_compiler_is_of_torchs_cuda() -> None:
    """The CUDA toolkit has the release of the CUDA libraries that are pinned beside torch."""
    release = re.search(r"^ARG CUDA=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert release is not None
    assert any(pin.startswith(f"cuda-toolkit=={release[1]}.") for pin in _pins(ROOT / "constraints-cuda.txt"))


def _pins(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
