"""buildah and podman with separate storage, which is removed afterwards."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("buildah", "podman", "runc", "mmdebstrap")
LIMIT_S = 3600
# What docker-compose.yml and the Kubernetes manifests say, and a smaller /dev/shm than any of them.
LOCKED_DOWN = (
    "--network=none", "--read-only", "--tmpfs=/tmp", "--shm-size=64k", "--cap-drop=all",
    "--security-opt=no-new-privileges",
)  # fmt: skip


def missing() -> str | None:
    """Return what this machine lacks for the suite and how to get it, or None."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)} (apt-get install {' '.join(PROGRAMS)})"
    return (
        None if os.geteuid() == 0 else "buildah --isolation chroot and runc are run as root here: sudo make test-image"
    )


@dataclass(frozen=True)
class Engine:
    """Images and containers below one directory."""

    directory: Path

    @property
    def environ(self) -> dict[str, str]:
        """The environment of both programs; caches of builds lie below TMPDIR."""
        temporary = self.directory / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        return os.environ | {"TMPDIR": str(temporary)}

    def _storage(self) -> list[str]:
        driver = os.environ.get("STORAGE_DRIVER", "overlay")
        places = ("--root", str(self.directory / "root"), "--runroot", str(self.directory / "run"))
        return [*places, "--storage-driver", driver]

    def buildah(self, *arguments: str) -> list[str]:
        """Return a command of buildah."""
        return ["buildah", *self._storage(), *arguments]

    def podman(self, *arguments: str) -> list[str]:
        """Return a command of podman. It needs no service manager and no network plugin."""
        own = ("--tmpdir", str(self.directory / "run" / "libpod"), "--runtime", "runc")
        return [
            "podman",
            *self._storage(),
            *own,
            "--cgroup-manager",
            "cgroupfs",
            "--events-backend",
            "none",
            *arguments,
        ]

    def call(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever its status."""
        return subprocess.run(
            command, env=self.environ, capture_output=True, text=True, check=False, timeout=LIMIT_S, errors="replace"
        )

    def read(self, command: list[str]) -> str:
        """Run a command and return what it prints. Raises AssertionError with its errors."""
        done = self.call(command)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout.strip()

    def start(self, image: str, user: str, *options: str) -> Container:
        """Start the image's own command in a locked-down container."""
        log = ("--log-driver=k8s-file",)
        run = self.podman("run", "--detach", f"--user={user}", *log, *LOCKED_DOWN, *_limits(), *options, image)
        name = self.read(run)
        where = ("--format", "{{.HostConfig.LogConfig.Path}} {{.State.Pid}}")
        path, pid = self.read(self.podman("inspect", *where, name)).split()
        return Container(self, name, Path(path), int(pid))

    def close(self) -> None:
        """Remove every container, image and mount below the directory, then the directory."""
        for command in (self.podman("rm", "--all", "--force", "--time=0", "--volumes"), self.buildah("rm", "--all")):
            self.call(command)
        for mount in sorted(self._mounts(), reverse=True):
            subprocess.run(["umount", mount], check=False)
        shutil.rmtree(self.directory)

    def _mounts(self) -> Iterator[str]:
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
            if (place := line.split()[1]).startswith(f"{self.directory}/"):
                yield place


def _limits() -> list[str]:
    """podman asks for larger limits than a root without CAP_SYS_RESOURCE may set."""
    names = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    limits = {name: resource.getrlimit(number)[1] for name, number in names.items()}
    return [
        f"--ulimit={name}={n}:{n}" for name, hard in limits.items() for n in [min(hard, 4096) if hard > 0 else 4096]
    ]


@dataclass(frozen=True)
class Container:
    """A running container."""

    engine: Engine
    name: str
    log_file: Path
    process: int

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return self.engine.call(self.engine.podman("exec", self.name, *command))

    def shell(self, script: str) -> str:
        """Return what a script prints in it."""
        return self.engine.read(self.engine.podman("exec", self.name, "sh", "-c", script))

    def log(self) -> str:
        """Return what it has logged. Asking podman in a loop would take half a core."""
        return "".join(line.split(" ", 3)[3] for line in self.log_file.read_text(encoding="utf-8").splitlines(True))

    def runs(self) -> bool:
        """Return whether its first process has not ended."""
        return Path("/proc", str(self.process)).exists()

    def stop(self) -> int:
        """Send the image's stop signal, wait, and return the exit status; 137 where it had to be killed."""
        self.engine.read(self.engine.podman("stop", "--time=40", self.name))
        return int(self.engine.read(self.engine.podman("inspect", "--format", "{{.State.ExitCode}}", self.name)))

    def remove(self) -> None:
        """Remove it with its volumes."""
        self.engine.read(self.engine.podman("rm", "--force", "--time=0", "--volumes", self.name))
