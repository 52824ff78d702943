"""The progress bar and the two files of `embed_folder`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vim_client.answers import Vector
from vim_client.http import ClientError


def bar(paths: list[Path], progress: bool) -> Iterable[Path]:
    """The paths, with a progress bar if it is wanted and tqdm is installed."""
    if not progress:
        return paths
    try:
        from tqdm import tqdm
    except ImportError:
        return paths
    shown: Iterable[Path] = tqdm(paths, unit="image")
    return shown


def write(out: Path, rows: list[Vector], lines: list[str]) -> None:
    """Write OUT.npy and OUT.jsonl."""
    out = out.with_suffix("") if out.suffix == ".npy" else out
    np.save(f"{out}.npy", np.stack(rows) if rows else np.empty((0, 0), np.float32))
    Path(f"{out}.jsonl").write_text("".join(lines), encoding="utf-8")


def line(path: Path, answer: Vector | ClientError, row: int) -> str:
    """The line of OUT.jsonl for one image: its row, or its error."""
    found = {"row": row} if isinstance(answer, np.ndarray) else {"error": str(answer)}
    return json.dumps({"path": str(path)} | found) + "\n"
