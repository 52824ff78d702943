"""The stages of the CUDA image that need neither a GPU nor NVIDIA's toolkit image (`make test-image-cuda`)."""

from __future__ import annotations

import os
import re

from tests.deploy.dockerfile import stages
from tests.deploy.image.build import base, build, pip_arguments
from tests.deploy.image.engine import Engine

# BASE=pull builds these too, in about an hour: they need the toolkit, which only NVIDIA's image has.
NOT_BUILT = {
    "toolkit": "NVIDIA's image, from a registry",
    "kernels": "compiles mamba-ssm and causal-conv1d with the toolkit",
    "packages-cuda-kernels": "installs what that stage compiles",
    "cuda": "the image, which takes its packages from that stage; runs on a machine with a GPU",
}
_TORCH = "import torch, triton; print(torch.version.cuda, triton.__version__, torch.cuda.is_available())"


def needed(target: str) -> set[str]:
    """A stage and all that it starts from, copies from or mounts."""
    known = stages()
    if target not in known:
        return set()
    text = " ".join(rest for _, rest in known[target].instructions)
    before = known[target].base, *re.findall(r"from=([a-z-]+)", text)
    return {target}.union(*map(needed, before))


def test_every_stage_without_a_gpu_is_built(engine: Engine) -> None:
    """torch for CUDA and Triton are installed and import, the kernels for CPUs are compiled; prints the rest."""
    pulled = os.environ.get("BASE") == "pull"
    target = "cuda" if pulled else "machine-code-cuda"
    built = build(engine, target, *base(engine), *pip_arguments(engine, local=False))
    run = ("run", "--rm", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
    said = engine.read(engine.podman(*run, "--entrypoint=/opt/venv/bin/python", built.image, "-c", _TORCH))
    rest = {} if pulled else NOT_BUILT
    print(f"\n{built.summary()}\n  CUDA, Triton, GPU: {said}")
    print("\n".join(f"  not built: {name} ({why})" for name, why in rest.items()))

    assert re.fullmatch(r"13\.\S+ 3\.\S+ False", said)
    assert built.seconds.keys() | rest.keys() | {"runtime"} >= needed("cuda")
