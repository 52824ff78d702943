"""The models that are served: a stand-in that takes 0.1 ms an image, vim-tiny at its released shape, the demo model.

Weights of the first two are random: speed does not depend on them. Every server loads the same files.
"""

from __future__ import annotations

import json
from pathlib import Path

from model.config import VimConfig
from model.preprocessing.recipe import Preprocess
from model.vim import Vim

STANDIN = "standin"
MODELS = (STANDIN, "demo", "vim-tiny", "miniature")  # the last for the tests
_CONFIGS = {
    STANDIN: VimConfig(
        depth=2, num_classes=10
    ),  # the pixels, the width and the rows of vim-tiny; see bench.serve.standin
    "vim-tiny": VimConfig(),
    "miniature": VimConfig(image_size=(64, 64), embed_dim=32, depth=2, num_classes=10),
}


def source(name: str, cache: Path) -> str:
    """The value of VIM_MODEL for this model; it is written to the cache if necessary."""
    if name not in _CONFIGS:
        return name
    folder = cache / "models" / name
    if not (folder / "labels.json").is_file():
        _write(_CONFIGS[name], folder)
    return str(folder)


def _write(config: VimConfig, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder / "config.json")
    save_file(dict(_random(config).state_dict()), folder / "model.safetensors")
    recipe = Preprocess(size=config.image_size[0], mode="friendly")
    (folder / "preprocess.json").write_text(json.dumps(recipe.to_dict()))
    (folder / "labels.json").write_text(json.dumps([f"class {i}" for i in range(config.num_classes)]))


def _random(config: VimConfig) -> Vim:
    from bench.model import random_model

    return random_model(config, "torch")
