"""A Vision Mamba small enough for unit tests: milliseconds on a CPU, seeded, every tensor different from zero."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from model.config import VimConfig
from model.scan import choose
from model.vim import Vim

LABELS = [f"thing {i}" for i in range(7)]
CONFIG = VimConfig(image_size=(64, 64), embed_dim=32, depth=2, num_classes=len(LABELS))


def tiny_vim(config: VimConfig = CONFIG, seed: int = 0) -> Vim:
    """A model with random weights on the CPU."""
    vim = Vim(config, choose("torch", torch.device("cpu")).fn).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in vim.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return vim


def write_tiny_model(directory: Path, seed: int = 0, **changes: Any) -> Path:
    """A model directory: config.json, model.safetensors and, with its seven classes, labels.json."""
    directory.mkdir(parents=True, exist_ok=True)
    config = CONFIG.replace(**changes)
    config.save(directory / "config.json")
    save_file(dict(tiny_vim(config, seed).state_dict()), directory / "model.safetensors")
    if config.num_classes == len(LABELS):
        (directory / "labels.json").write_text(json.dumps(LABELS))
    return directory


def photo(seed: int = 0, size: tuple[int, int] = (90, 70), kind: str = "JPEG") -> bytes:
    """An encoded image with large soft colour patches."""
    generator = torch.Generator().manual_seed(seed)
    coarse = (255 * torch.rand(5, 6, 3, generator=generator)).byte().numpy()
    encoded = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(encoded, kind)
    return encoded.getvalue()
