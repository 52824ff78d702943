"""The baseline's kernels from the source archives of mamba-ssm and causal-conv1d: python -m bench.gpu.build NAME ...

torch compiles them, forward only and for sm_90 only: four or five files in place of fourteen for nine architectures.
The packages' own build files have no options for this.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from bench.gpu import jobs

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = "9.0"
FLAGS = [
    "-O3",
    *(f"-U__CUDA_NO_{name}__" for name in ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_OPERATORS")),
    *(f"-U__CUDA_NO_{name}__" for name in ("BFLOAT16_CONVERSIONS", "BFLOAT162_OPERATORS", "BFLOAT162_CONVERSIONS")),
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    "--use_fast_math",
]


@dataclass(frozen=True, slots=True)
class Extension:
    """A compiled module: its archive, and which of its files are needed."""

    archive: str
    folder: str
    binding: str
    kernels: tuple[str, ...]
    absent: dict[str, str]  # functions whose kernels are left out, and their parameters' type


EXTENSIONS = {
    "selective_scan_cuda": Extension(
        "mamba_ssm-*.tar.gz",
        "csrc/selective_scan",
        "selective_scan.cpp",
        tuple(f"selective_scan_fwd_{dtype}.cu" for dtype in ("fp32", "fp16", "bf16")),
        {"selective_scan_bwd_cuda": "SSMParamsBwd"},
    ),
    "causal_conv1d_cuda": Extension(
        "causal_conv1d-*.tar.gz",
        "csrc",
        "causal_conv1d.cpp",
        ("causal_conv1d_fwd.cu",),
        {
            "causal_conv1d_bwd_cuda": "ConvParamsBwd",
            "causal_conv1d_channellast_bwd_cuda": "ConvParamsBwd",
            "causal_conv1d_update_cuda": "ConvParamsBase",
        },
    ),
}
_STUB = """
template <typename input_t, typename weight_t>
void {name}({type} &, cudaStream_t) {{ TORCH_CHECK(false, "{name} is not built"); }}
"""


def main() -> None:
    """Build one module into `--target`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=EXTENSIONS)
    parser.add_argument("--sources", type=Path, required=True, help="the folder of the archives")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true", help="unpack, but do not compile")
    options = parser.parse_args()
    jobs.die_with_parent()
    folder = options.target / options.name
    if (folder / f"{options.name}.so").is_file():
        print("built before")
        return
    shutil.rmtree(folder, ignore_errors=True)  # torch would wait for the lock of a build that was killed
    sources = unpack(EXTENSIONS[options.name], options.sources, folder)
    if not options.dry_run:
        _compile(options.name, sources, folder)


def unpack(extension: Extension, archives: Path, folder: Path) -> list[Path]:
    """Unpack an archive and return the files to compile. Functions that are left out raise an error when called."""
    found = sorted(archives.glob(extension.archive))
    if len(found) != 1:
        raise SystemExit(f"{archives} holds {len(found)} files {extension.archive}, one is needed")
    with tarfile.open(found[0]) as archive:
        archive.extractall(folder, filter="data")
    inside = folder / found[0].name.removesuffix(".tar.gz") / extension.folder
    binding = inside / extension.binding
    stubs = "".join(_STUB.format(name=name, type=kind) for name, kind in extension.absent.items())
    binding.write_text(binding.read_text() + stubs)
    files = [binding, *(inside / name for name in extension.kernels)]
    if missing := [path.name for path in files if not path.is_file()]:
        raise SystemExit(f"{found[0].name} does not have {', '.join(missing)}")
    return files


def environment() -> dict[str, str]:
    """Return the environment for torch's build; torch reads it when its build tools are imported."""
    home = cuda_home()
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))  # ninja is beside Python
    own = {"TORCH_CUDA_ARCH_LIST": ARCHITECTURE, "PATH": path}
    return os.environ | ({"CUDA_HOME": home} if home else {}) | own


def cuda_home() -> str | None:
    """Return the folder of the CUDA toolkit whose nvcc is on the path; nvcc reports it, even behind a wrapper."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    asked = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
    for line in (asked.stderr + asked.stdout).splitlines():
        name, _, value = line.removeprefix("#$ ").partition("=")
        if name == "_HERE_" and (Path(value) / "nvcc").is_file():
            return str(Path(value).parent)
    return str(Path(nvcc).resolve().parents[1])


def _compile(name: str, sources: list[Path], folder: Path) -> None:
    from torch.utils import cpp_extension

    cpp_extension.load(
        name,
        [str(path) for path in sources],
        extra_cflags=["-O3"],
        extra_cuda_cflags=FLAGS,
        build_directory=str(folder),
        verbose=True,
    )


if __name__ == "__main__":
    main()
