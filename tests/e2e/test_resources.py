"""A device process is killed while a resource is exhausted: descriptors, memory, processes, /dev/shm, the cache's disk.
No accepted request is lost, and the server recovers.
"""

from __future__ import annotations

import asyncio
import io
import os
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from tests.e2e.load import Load
from tests.e2e.server import Server, serving
from tests.tiny import photo

pytestmark = pytest.mark.slow
IDLE = 400
OTHER_USER = "setpriv --reuid 65534 --inh-caps +dac_override --ambient-caps +dac_override"
SPARE_BYTES = 8 << 20  # enough for small photographs


def _may_mount() -> bool:
    """Return whether this user can mount a tmpfs of its own."""
    if os.getuid() != 0 or shutil.which("unshare") is None:
        return False
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


mounts = pytest.mark.skipif(not _may_mount(), reason="needs root, to mount a small tmpfs")


def small(directory: Path | str, size: str) -> str:
    """The shell command that makes a directory a small tmpfs."""
    return f"mount -t tmpfs -o size={size} tmpfs {directory}"


@contextmanager
def idle_connections(server: Server, count: int) -> Iterator[None]:
    """Connections that send nothing."""
    port = int(server.url.rsplit(":", 1)[1])
    with ExitStack() as opened:
        for _ in range(count):
            opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
        yield


async def restarted(server: Server) -> None:
    """Wait until a killed device process has been replaced."""
    async with asyncio.timeout(180):
        while "restart 1" not in server.log or server.log.count("cpu is up") < 2:
            await asyncio.sleep(0.1)


async def nothing_is_lost(server: Server) -> None:
    """Kill the device process under load; every request gets its answer."""
    async with Load(server.url, clients=4) as load:
        await asyncio.sleep(0.5)
        server.signal_device(signal.SIGKILL)
        await restarted(server)
        await asyncio.sleep(0.5)

    assert load.ledger.clean, load.ledger.complaints
    assert load.ledger.statuses[200] > 4


async def classify_until(server: Server, ended: asyncio.Event) -> set[int]:
    """The statuses of one request after another on one connection, until this event."""
    statuses = set[int]()
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=1)) as client:
        while not ended.is_set():
            statuses.add((await client.post("/v1/classify", content=photo())).status_code)
    return statuses


async def open_connections_go_on(server: Server) -> None:
    """Kill the device process while idle connections take all descriptors; connections opened earlier lose nothing."""
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(classify_until(server, ended)) for _ in range(4)]
        await asyncio.sleep(0.5)
        with idle_connections(server, IDLE):
            server.signal_device(signal.SIGKILL)
            await restarted(server)
            await asyncio.sleep(0.5)
            ended.set()
            await asyncio.wait(clients)
    assert [{200}] * len(clients) == [client.result() for client in clients]


def test_descriptors_run_out(tmp_path: Path, tiny: Path) -> None:
    """400 idle connections under 256 descriptors leave enough for a restart and for the open connections."""
    with serving(tmp_path, model=tiny, limits="ulimit -n 256") as server:
        asyncio.run(open_connections_go_on(server))
        server.signal(signal.SIGTERM)

        assert server.exit_status() == 0


def test_very_few_descriptors(tmp_path: Path, tiny: Path) -> None:
    """Under 64 descriptors few connections are open at once; the others get 503, and the server continues."""
    with serving(tmp_path, model=tiny, limits="ulimit -n 64") as server:
        with idle_connections(server, IDLE):
            server.signal_device(signal.SIGKILL)
            asyncio.run(restarted(server))
        server.wait_until_ready()
        with server.client() as client:
            assert client.post("/v1/classify", content=photo()).status_code == 200


@contextmanager
def limited(server: Server, kind: int, most: int) -> Iterator[None]:
    """A server process whose use of a resource is limited to `most`."""
    before = resource.prlimit(server.process.pid, kind)
    resource.prlimit(server.process.pid, kind, (most, before[1]))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, kind, before)


def _may_be_another_user() -> bool:
    """Return whether a process can become another user who may read our files; process limits do not apply to root."""
    return os.getuid() == 0 and subprocess.run(["sh", "-c", f"{OTHER_USER} true"], check=False).returncode == 0


async def memory_runs_out(server: Server, large: bytes) -> None:
    """Kill the device process while there is no memory for a large image or a new process."""
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(classify_until(server, ended)) for _ in range(2)]
        await asyncio.sleep(0.5)
        most = psutil.Process(server.process.pid).memory_info().vms + SPARE_BYTES
        with limited(server, resource.RLIMIT_AS, most):
            async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
                refused = await client.post("/v1/classify", content=large)
            server.signal_device(signal.SIGKILL)
            await asyncio.sleep(3)
        await restarted(server)
        await asyncio.sleep(0.5)
        ended.set()
    assert (503, "out_of_memory") == (refused.status_code, refused.json()["code"])
    assert [{200}] * len(clients) == [client.result() for client in clients]


def test_memory_runs_out(tmp_path: Path, tiny: Path) -> None:
    """Only the large image is refused, with the reason, and the device process restarts when there is memory."""
    file = io.BytesIO()
    Image.new("RGB", (9000, 9000), (10, 200, 30)).save(file, "PNG")
    with serving(tmp_path, model=tiny) as server:
        asyncio.run(memory_runs_out(server, file.getvalue()))

        assert "out of memory: a PNG image of 9000 x 9000 pixels" in server.log
        with server.client() as client:
            assert client.post("/v1/classify", content=file.getvalue()).status_code == 200


def allow_processes(server: Server, most: str) -> None:
    """Set how many processes the user of a server may have; only that user may."""
    subprocess.run([*OTHER_USER.split(), "prlimit", f"--pid={server.process.pid}", f"--nproc={most}:"], check=True)


async def no_process_can_be_started(server: Server) -> None:
    """Kill the device process while the user may start no more processes."""
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(classify_until(server, ended)) for _ in range(2)]
        await asyncio.sleep(0.5)
        allow_processes(server, "1")
        server.signal_device(signal.SIGKILL)
        await asyncio.sleep(3)
        allow_processes(server, "1000")
        await restarted(server)
        await asyncio.sleep(0.5)
        ended.set()
    assert [{200}] * len(clients) == [client.result() for client in clients]


@pytest.mark.skipif(not _may_be_another_user(), reason="needs root, to become a user with a limit of processes")
def test_processes_run_out(tmp_path: Path, tiny: Path) -> None:
    """The log says that no process can be started; when one can, the device restarts, and no request is lost."""
    with serving(tmp_path, model=tiny, limits=f'exec {OTHER_USER} "$@"') as server:
        asyncio.run(no_process_can_be_started(server))

        assert "cannot be started: [Errno 11]" in server.log


@mounts
def test_a_small_dev_shm(tmp_path: Path, tiny: Path) -> None:
    """Two processes keep their counters elsewhere if /dev/shm has 16 kB."""
    with serving(tmp_path, model=tiny, limits=small("/dev/shm", "16k"), http_workers=2) as server:
        asyncio.run(nothing_is_lost(server))


@mounts
def test_a_full_cache(tmp_path: Path, tiny: Path) -> None:
    """Compiled code that does not fit on the disk is compiled again at a restart; the log says so once."""
    cache = tmp_path / "cache"
    cache.mkdir()
    with serving(tmp_path, model=tiny, limits=small(cache, "64k"), cache_dir=cache) as server:
        asyncio.run(nothing_is_lost(server))

        assert "compiled code cannot be kept in" in server.log
