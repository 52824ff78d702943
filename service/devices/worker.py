"""The program of a device process: owns torch and one device, and runs the batches that its parent sends.

The process is a new interpreter, not a fork. It ignores SIGINT and SIGTERM (the parent decides when to stop) and ends
when the parent's end of the socket closes. The kernel kills it when its parent dies, even if it hangs.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from model.config import VimConfig
from model.errors import ModelError
from model.runtime.runner import BatchRunner, Runner, is_out_of_memory
from model.vim import Vim
from service import ipc
from service import log as service_log
from service.devices.messages import (
    Attach,
    FromDevice,
    Loaded,
    Ready,
    RunBatch,
    Start,
    StartFailed,
    ToDevice,
    Warmed,
    WarmUp,
)
from service.devices.slots import map_area
from service.devices.worker_loop import WorkerLoop
from service.settings import Settings
from service.status import DeviceInfo, ModelInfo
from service.system import memory, priority, sched_slice

log = logging.getLogger("vim.worker")

PR_SET_PDEATHSIG = 1  # linux/prctl.h
SMALLEST_SIDE = 33  # the reference does not resize at 32 px and below, so images would keep their own sizes


class Worker:
    """Receives messages from the parent and runs the model."""

    def __init__(self, connection: socket.socket, slots_descriptor: int) -> None:
        self._connection = connection
        self._stream: BinaryIO = connection.makefile("rb")
        self._slots_descriptor = slots_descriptor

    def serve(self) -> None:
        """Load, warm up, then run batches until the parent closes the connection."""
        sched_slice.restore()  # before torch starts threads
        start = self._receive()
        assert isinstance(start, Start)
        settings = Settings.model_validate_json(start.settings_json)
        service_log.configure(settings.log_level)
        runner = self._load(settings, start)
        attach = self._receive()
        if attach is None:  # the parent ended, or refused the model
            return
        assert isinstance(attach, Attach)
        runner.attach(map_area(self._slots_descriptor, attach.area, attach.slots).views)
        if not self._warm_up(runner):
            return
        loop = WorkerLoop(runner, self.send)
        while (message := self._receive()) is not None:
            assert isinstance(message, RunBatch)
            loop.begin(message)
        loop.close()

    def _load(self, settings: Settings, start: Start) -> BatchRunner:
        if start.background:
            runner = priority.run_in_background(lambda: _loaded(settings, start.device))
            _use_device(runner)
        else:
            runner = _loaded(settings, start.device)
        self.send(Loaded(describe(runner, settings), _siblings(runner, start.device)))
        return runner

    def _warm_up(self, runner: BatchRunner) -> bool:
        """Run a pass whenever the parent asks for one. Return False if the parent ended before the last pass."""
        seconds: dict[int, float] = {}
        passes = runner.warm_up()
        while isinstance(self._receive(), WarmUp):
            if one := next(passes, None):
                size, seconds[one[0]] = one
                log.info("warm-up: batch of %d in %.1f ms", size, 1000 * seconds[size])
                self.send(Warmed())
            else:
                self._report_ready(runner, seconds)
                return True
        return False

    def _report_ready(self, runner: BatchRunner, seconds: Mapping[int, float]) -> None:
        self.send(
            Ready(
                max_batch=runner.max_batch,
                batch_seconds=seconds,
                scan=_describe_scan(runner.vim),
                memory=runner.memory(),
                depth=runner.depth,
                handover_s=runner.handover_s,
                runner=runner.describe(),
                host_bytes=memory.private_bytes(),
            )
        )

    def _receive(self) -> object | None:
        message: object = ipc.read(self._stream, ToDevice)
        return message

    def send(self, message: FromDevice) -> None:
        """Send a message to the parent."""
        self._connection.sendall(ipc.pack(message))


def _loaded(settings: Settings, device: str) -> BatchRunner:
    """Load the model and test its scan. Raises ModelError, also if the memory is not enough."""
    try:
        vim = _load_model(settings, device)
        check_servable(vim.config)
        runner = runner_for(vim, settings)
        runner.verify_scan(settings.scan)  # before `describe`, because it may choose the dtype
    except Exception as error:
        if is_out_of_memory(error):
            raise ModelError(f"there is not enough memory for the model: {error}") from error
        raise
    return runner


def _use_device(runner: BatchRunner) -> None:
    """Make a GPU the current device of this thread, as it is in the thread that has loaded the model."""
    import torch

    if runner.device.type == "cuda":
        torch.cuda.set_device(runner.device)


def check_servable(config: VimConfig) -> None:
    """Raise ModelError for a model that cannot give one row for a photograph."""
    height, width = config.image_size
    if config.channels != 3:
        raise ModelError(f"the service decodes RGB images; this model takes {config.channels} channels")
    if height != width:
        raise ModelError(f"the service crops to a square; this model takes {height}x{width} px")
    if config.token_wise:
        raise ModelError(f"pool {config.pool!r} gives features per token; the service answers with one row an image")
    if height < SMALLEST_SIDE:
        raise ModelError(f"images of {height} px and below are not resized by the reference; the service needs 33 px")


def runner_for(vim: Vim, settings: Settings) -> BatchRunner:
    """The runner of this model on its device. On a GPU, VIM_DTYPE=auto selects a dtype that agrees with float32."""
    if vim.patch_embed.proj.weight.device.type == "cpu":
        return Runner(vim, max_batch=settings.max_batch)
    from model.runtime.cuda.runner import CudaRunner
    from model.runtime.cuda.torch_cuda import TorchCuda

    accelerator = TorchCuda(vim.patch_embed.proj.weight.device)
    return CudaRunner(vim, accelerator, max_batch=settings.max_batch, choose_dtype=settings.dtype == "auto")


def _siblings(runner: BatchRunner, device: str) -> tuple[str, ...]:
    """The other devices of the machine, if no device was selected by number."""
    import torch

    if runner.device.type == "cpu" or device not in ("auto", "cuda"):
        return ()
    return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()) if index != runner.device.index)


def served_fingerprint(vim: Vim, settings: Settings) -> str:
    """The model's fingerprint; another one with VIM_DECODE=fast, because that changes embeddings a little."""
    if settings.decode != "fast":
        return vim.fingerprint
    return hashlib.sha256(f"{vim.fingerprint} decode=fast".encode()).hexdigest()[: len(vim.fingerprint)]


def describe(runner: BatchRunner, settings: Settings) -> ModelInfo:
    """The loaded model and where it runs."""
    import torch

    vim = runner.vim
    return ModelInfo(
        name=settings.served_name,
        family=vim.config.family,
        fingerprint=served_fingerprint(vim, settings),
        classes=vim.config.num_classes,
        scores=vim.config.score_function,
        embedding_dim=vim.config.feature_dim,
        mean_embedding_dim=vim.config.embed_dim,
        image_size=vim.config.image_size[0],
        preprocess=vim.preprocess.to_dict(),
        labels=tuple(vim.labels.names),
        labels_source=vim.labels.source,
        in_domain=vim.domain is not None,
        source=settings.model,
        weights=settings.weights,
        parameters=sum(p.numel() for p in vim.parameters()),
        config=vim.config.to_dict(),
        assumptions=tuple(vim.assumptions),
        dtype=str(runner.dtype).removeprefix("torch."),
        device=DeviceInfo(_device_name(runner), runner.device.type, torch.get_num_threads()),
        scan=_describe_scan(vim),
        versions={"torch": str(torch.__version__), "numpy": np.__version__, "python": sys.version.split()[0]},
    )


def _device_name(runner: BatchRunner) -> str:
    import torch

    return torch.cuda.get_device_name(runner.device) if runner.device.type == "cuda" else "cpu"


def _describe_scan(vim: Vim) -> dict[str, str]:
    choice = vim.scan_choice
    return {"name": choice.name, "why": choice.why, "path": choice.path} if choice else {}


def _load_model(settings: Settings, device: str) -> Vim:
    from model.backends.triton.support import use_cache
    from model.loading.load import load

    if settings.decode != "pillow":  # then the HTTP process compiles too, and logs that code cannot be kept
        logging.getLogger("vim.model.cache_place").setLevel(logging.ERROR)
    use_cache(cache_dir := _cache_dir(settings))
    return load(
        settings.model,
        family=settings.model_family,
        weights=settings.weights,
        labels=settings.labels or None,
        preprocess=settings.preprocess,
        device=device,
        dtype=settings.dtype,
        scan=settings.scan,
        image_size=settings.image_size,
        cache_dir=cache_dir,
        offline=settings.offline,
    )


def _cache_dir(settings: Settings) -> Path:
    """VIM_CACHE_DIR; without a home directory a temporary one, which is removed when this process ends."""
    if settings.cache_dir is not None:
        return settings.cache_dir
    try:
        directory = tempfile.TemporaryDirectory(prefix="vim-server-", ignore_cleanup_errors=True)
    except OSError:  # nothing is writable; a download reports it
        return Path(os.devnull)
    atexit.register(directory.cleanup)
    return Path(directory.name)


def main(socket_descriptor: int, slots_descriptor: int) -> int:
    """Entry point of the process; returns its exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    worker = Worker(socket.socket(fileno=socket_descriptor), slots_descriptor)
    try:
        worker.serve()
    except ModelError as error:
        worker.send(StartFailed(str(error)))
        return 1
    except (BrokenPipeError, ConnectionResetError):
        log.info("the parent is gone")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
