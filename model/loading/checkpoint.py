"""A file of weights -> float32 tensors by name. Runs no code from the file and keeps only the requested weights.

If a file is not a checkpoint, the error says what it is. This module does not know the architecture; see
`model.loading.infer_config` and `model.loading.fit`.
"""

from __future__ import annotations

import argparse
import codecs
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.errors import WeightsError
from model.loading import shards
from model.loading.names import ANCHOR, counted, usual

AGAIN = "download it again"
# Keys under which a state dict is stored, by the requested weights; any other name is its own key.
# `module` is DeepSpeed's.
_WRAPPERS = {
    "model": ("model", "state_dict", "model_state_dict", "model_state", "net", "module"),
    "model_ema": ("model_ema", "state_dict_ema"),
}
_DEEPEST = 4  # limits recursion: a pickle may contain itself
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6
_OTHER_FILES = (
    (rb"\s*<(!doctype|html|\?xml)", f"an HTML or XML page: the link led to a web page, not to the file; {AGAIN}"),
    (rb"\s*[\[{]", "JSON text, perhaps a server's error message"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf", "a compressed archive: unpack it first"),
    (rb"\x00{16}", f"a file that starts with zeros, as unfinished downloads do; {AGAIN}"),
    (rb"\x80[\x02-\x05]", "a plain pickle that torch.save did not write: refused unread, since pickles can hold code"),
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The requested weights of one file, as float32 on the CPU and independent of the file, and its other contents."""

    path: Path
    format: str  # "safetensors", "torch" or "torch (before 1.6)"
    size: int  # bytes
    tensors: dict[str, Tensor]
    keys: tuple[str, ...] = ()  # at the top level; empty when the file is a plain state dict
    unwrapped: tuple[str, ...] = ()  # the wrapper keys above the weights, outermost first
    args: Mapping[str, Any] = field(default_factory=dict)  # the training run's arguments
    notes: tuple[str, ...] = ()  # what was renamed or left out
    sets: tuple[str, ...] = ()  # names of the sets of weights that the file holds


def read(path: Path, weights: str = "model") -> Checkpoint:
    """Read the weights called `weights` from a file, or from the shards of an index.

    Raises WeightsError, which says what the file is and what to do.
    """
    if shards.is_index(path):
        return _read_shards(path, weights)
    if shards.of_several(path):
        raise WeightsError(f"{path} is one of several shards: give its directory, with the index and all shards")
    size, form, content = _content(path)
    state, unwrapped = _unwrap(content, weights, path)
    named, notes = usual(state)
    tensors = {name: _float32(name, value, path) for name, value in named.items()}
    _check_finite(tensors, path)
    keys = tuple(map(str, content)) if unwrapped else ()
    return Checkpoint(path, form, size, tensors, keys, unwrapped, _arguments(content), notes, _sets(content))


def _read_shards(index: Path, weights: str) -> Checkpoint:
    """Read one shard after the other; of each only its weights stay in memory."""
    if weights != "model":
        raise WeightsError(f"{index} has no weights {weights!r}: shards hold one set of weights")
    tensors, size, forms, dropped = dict[str, Tensor](), 0, set[str](), list[str]()
    for file, names in shards.read_index(index).items():
        path = index.parent / file
        if not path.is_file():
            raise WeightsError(f"{index} lists {file}, which is not there: download it too")
        shard_size, form, content = _content(path)
        state, _ = _unwrap(content, weights, path)
        if missing := [name for name in names if name not in state]:
            raise WeightsError(f"{path} has no tensor {missing[0]!r}, which {index.name} lists")
        named, counters = counted({name: state[name] for name in names})
        tensors |= {name: _float32(name, value, path) for name, value in named.items()}
        dropped += [*counters, *(name for name in state if name not in names)]
        size, forms = size + shard_size, forms | {form}
    tensors, notes = usual(tensors)
    if dropped:
        notes = (*notes, f"left out {len(dropped)} tensors that are counters or not in the index, such as {dropped[0]}")
    _check_finite(tensors, index)
    return Checkpoint(index, f"{' and '.join(sorted(forms))}, in shards", size, tensors, notes=notes)


def _content(path: Path) -> tuple[int, str, Mapping[Any, Any]]:
    """Size, format, and what the file holds."""
    size, form = _recognise(path)
    if form == "safetensors":
        return size, form, _read_safetensors(path)
    return size, form, _read_torch(path, mmap=form == "torch")


def _recognise(path: Path) -> tuple[int, str]:
    """Return size and format, by content, because file names may be wrong."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    if head.startswith(b"PK\x03\x04"):
        _check_archive(path)
        return size, "torch"
    if head.startswith(_LEGACY):
        return size, "torch (before 1.6)"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return size, "safetensors"
    raise WeightsError(f"{path} is {_what_else(head)}")


def _what_else(head: bytes) -> str:
    if not head:
        return f"empty (0 bytes); {AGAIN}"
    if head.startswith(b"version https://git-lfs"):
        size = re.search(rb"size (\d+)", head)
        real = f" of {int(size[1]) / 1e6:,.1f} MB" if size else ""
        return f"a git-lfs pointer to a file{real}, not the file: run `git lfs pull` there, or download the file itself"
    for pattern, what in _OTHER_FILES:
        if re.match(pattern, head, re.IGNORECASE):
            return what
    return f"neither safetensors nor a torch checkpoint (it starts with {head[:8]!r})"


def _check_archive(path: Path) -> None:
    """torch.save writes a zip archive; its directory is at the end, so a truncated file is detected."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{path} is cut short or damaged: its zip directory is missing; {AGAIN}") from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(f"{path} is a TorchScript program, not weights: save its state_dict() instead")
    if not any(name.endswith("/data.pkl") for name in names):
        raise WeightsError(
            f"{path} is a zip archive of {', '.join(names[:3])}, not a torch checkpoint: unpack it first"
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise WeightsError(f"{path} is a safetensors file cut short or damaged ({error}); {AGAIN}") from error


def _read_torch(path: Path, *, mmap: bool) -> Mapping[Any, Any]:
    try:
        with torch.serialization.safe_globals(_harmless()):
            if mmap and path.suffix != ".safetensors":  # for that suffix torch.load does not use the content
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            else:
                with path.open("rb") as file:
                    content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path, str(error))) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(f"{path} is cut short or damaged ({_first_line(error)}); {AGAIN}") from error
    if not isinstance(content, Mapping):
        what = f"a tensor of shape {tuple(content.shape)}" if isinstance(content, Tensor) else type(content).__name__
        raise WeightsError(f"{path} holds {what}, not a state dict (tensors by name)")
    return content


def _harmless() -> list[Any]:
    """Classes and functions that training programs pickle beside the weights, and that only hold values.

    The reference pickles its command line, a Namespace. torch allows only these and its own.
    """
    paths = {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath}
    modules = ("pathlib", "pathlib._local")  # before and since Python 3.13
    scalar, rebuilt = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    numpy = [
        (function, f"numpy.{core}.multiarray.{name}")
        for name, function in (("scalar", scalar), ("_reconstruct", rebuilt))
        for core in ("core", "_core")  # before and since NumPy 2
    ]
    kinds = [kind for kind in vars(np.dtypes).values() if isinstance(kind, type)]
    return [
        argparse.Namespace,
        (_empty_dict, "collections.defaultdict"),  # torch fills no other kind of dict
        *(dict, float, int, list, set),  # what a defaultdict makes
        *(datetime, date, time, timedelta, timezone),
        *((kind, f"{module}.{name}") for module in modules for name, kind in paths.items()),
        *((kind, f"pathlib.{kind.__name__}") for kind in (PurePosixPath, PureWindowsPath)),
        *numpy,
        np.ndarray,
        np.dtype,
        *kinds,
        codecs.encode,  # of the bytes of a scalar, with protocol 2
    ]


def _empty_dict(*_: object) -> dict[Any, Any]:
    return {}


def _refusal(path: Path, message: str) -> str:
    found = re.search(r"GLOBAL (\S+)", message)
    if found is None:
        return f"{path} is damaged, or holds more than tensors and settings: refused, nothing in it was run"
    return (
        f"{path} holds a pickled object ({found[1]}), which is code, not weights: refused, nothing in it was run. "
        "If you trust where it comes from, save its state dict alone with the program that wrote it"
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _unwrap(content: Mapping[Any, Any], weights: str, path: Path) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """Return the innermost mapping under known wrapper keys, and these keys."""
    state, trail = content, list[str]()
    wrappers = _WRAPPERS.get(weights, (weights,))
    for _ in range(_DEEPEST):
        name = next((name for name in wrappers if isinstance(state.get(name), Mapping)), None)
        if name is None:
            break
        state, wrappers = state[name], _WRAPPERS["model"]
        trail.append(name)
    if not trail and weights != "model":
        raise WeightsError(f"{path} has no weights {weights!r}: {_describe(content)}")
    if not state or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        where = f" under {' / '.join(trail)}" if trail else ""
        raise WeightsError(f"{path} holds no state dict (tensors by name){where}: {_describe(state)}")
    return state, tuple(trail)


def _sets(content: Mapping[Any, Any]) -> tuple[str, ...]:
    """The top-level keys under which there are weights of a model, such as `model` and `model_ema`."""
    return tuple(
        str(key)
        for key, value in content.items()
        if isinstance(value, Mapping) and any(str(name).endswith(ANCHOR) for name in value)
    )


def _describe(content: Mapping[Any, Any]) -> str:
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return f"it is one plain state dict of {len(content)} tensors; load it with weights='model'"
    shown = [f"{key} ({type(value).__name__})" for key, value in list(content.items())[:8]]
    more = f" and {len(content) - 8} more" if len(content) > 8 else ""
    return f"its keys are {', '.join(shown)}{more}" if shown else "it is empty"


def _float32(name: str, value: Tensor, path: Path) -> Tensor:
    """Copy to float32, so that neither the rest of the file nor its memory mapping stays in memory."""
    if not value.is_floating_point():
        raise WeightsError(f"{path}: {name} is {value.dtype}, not floating point; quantised weights are not supported")
    return value.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise WeightsError(
            f"{path} holds NaN or infinite values in {', '.join(bad[:5])}{more}: such a model cannot be used; "
            "the training run diverged, or the file is damaged"
        )


def _arguments(content: Mapping[Any, Any]) -> Mapping[str, Any]:
    args = content.get("args")
    if isinstance(args, argparse.Namespace):
        return vars(args)
    return args if isinstance(args, Mapping) else {}
