"""From a path to a loaded model: `load`.

    source -> checkpoint -> configuration, given or inferred -> strict fit -> model on its device

Each step has its own module; this one combines them. `read` stops before a device is chosen: it returns everything that
is known of a source without running the model.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

from model.backends.fusion import fuse
from model.backends.reference import scan as reference
from model.config import Family, VimConfig, read_object
from model.errors import ConfigError, ModelError, WeightsError
from model.heads import domain_file
from model.heads.domain import Domain
from model.labels import Labels
from model.loading.checkpoint import Checkpoint
from model.loading.checkpoint import read as read_checkpoint
from model.loading.fingerprint import BUFFERS, fingerprint
from model.loading.fit import check_fit
from model.loading.foreign_config import read_config
from model.loading.geometry import Size
from model.loading.hints import Hints
from model.loading.infer_config import UNPUBLISHED, infer
from model.loading.pos_embed import at_size, check_size
from model.loading.source import Source, resolve
from model.preprocessing.recipe import Mode, Preprocess
from model.rope import Rope
from model.scan import ScanFn, choose
from model.vim import Vim

log = logging.getLogger("vim.model")

AnyConfig = VimConfig | Mapping[str, Any] | str | Path
AnyLabels = Labels | Sequence[str] | str | Path
CROP_RATIOS: dict[Family, float] = {"vim": 0.875, "videomamba": 0.875, "mamba-reg": 1.0}  # as each family evaluates
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}


@dataclass(frozen=True, slots=True)
class Contents:
    """A source that is read and checked: weights that fit the configuration, and everything that belongs to them."""

    checkpoint: Checkpoint
    config: VimConfig
    config_from: str
    assumptions: tuple[str, ...]
    preprocess: Preprocess
    labels: Labels
    fingerprint: str
    domain: Domain | None = None


def load(
    source: str | Path,
    *,
    config: AnyConfig | None = None,
    family: str | None = None,
    weights: str = "model",
    labels: AnyLabels | None = None,
    preprocess: str | Preprocess = "reference",
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    scan: str = "auto",
    image_size: int | Size | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> Vim:
    """Load a model for inference: eval mode, gradients off.

    `source` is one of

    - a directory (config.json, model.safetensors or one .pth, labels.json, preprocess.json)
    - a file: .safetensors, a state dict, or the reference's training checkpoint, of which `weights` selects "model"
      or "model_ema"
    - the name of a released model (`vim-tiny`), or `owner/name[@revision][:file]` on the Hugging Face hub; downloads
      are kept in `cache_dir`, and `offline` forbids the network

    Without `config` or config.json the architecture is inferred from the tensors; what they do not show is assumed,
    logged, and kept in `.assumptions`. `family` (vim, videomamba, mamba-reg) says whose code trained a file whose
    tensors fit several published models. `preprocess` is a mode, or a whole recipe. At an `image_size` other than the
    trained one the position embedding is resampled.

    Raises ModelError with a message for the person who chose the source.
    """
    place, kind = pick_device(device), pick_dtype(dtype)
    choice = choose(scan, place)
    contents = read(
        source,
        config=config,
        family=family,
        weights=weights,
        labels=labels,
        preprocess=preprocess,
        image_size=image_size,
        cache_dir=cache_dir,
        offline=offline,
    )
    vim = _assemble(contents).cast(kind).to(place)
    vim.use_scan(choice)
    fuse(vim)
    log.info("loaded %s: fingerprint %s, %s on %s", contents.checkpoint.path, vim.fingerprint, kind, place)
    return vim


def read(
    source: str | Path,
    *,
    config: AnyConfig | None = None,
    family: str | None = None,
    weights: str = "model",
    labels: AnyLabels | None = None,
    preprocess: str | Preprocess = "reference",
    image_size: int | Size | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> Contents:
    """Read everything about a source that needs no device. Arguments and errors are those of `load`."""
    parts = resolve(source, cache_dir, offline=offline)
    checkpoint = read_checkpoint(parts.weights, weights)
    if parts.released and parts.released.note:
        checkpoint = dataclasses.replace(checkpoint, notes=(*checkpoint.notes, parts.released.note))
    for note in checkpoint.notes:
        log.info("%s: %s", checkpoint.path.name, note)
    size = _as_size(image_size)
    trained, config_from, assumptions = _configuration(config, parts, checkpoint, size, _as_family(family))
    _check(checkpoint, trained)
    architecture, tensors = at_size(trained, checkpoint.tensors, size or trained.image_size)
    checkpoint = dataclasses.replace(checkpoint, tensors=tensors)
    recipe = _recipe(preprocess, parts.preprocess, architecture)
    return Contents(
        checkpoint,
        architecture,
        config_from,
        assumptions,
        recipe,
        Labels.resolve(parts.labels if labels is None else labels, architecture.num_classes),
        fingerprint(architecture, recipe, checkpoint.tensors),
        _domain(parts.in_domain, architecture, recipe, checkpoint),
    )


def pick_device(device: str | torch.device) -> torch.device:
    """Return the device; `auto` is CUDA if available. Raises ModelError for a device that does not exist."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}; known: auto, cpu, cuda, cuda:N") from error
    if place.type not in ("cpu", "cuda"):
        raise ModelError(f"device {device!r} is not supported; known: auto, cpu, cuda, cuda:N")
    if place.type == "cuda":
        _check_cuda(place)
    return place


def pick_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return the dtype; `auto` is float32. Raises ModelError for a dtype that the model does not support."""
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        return torch.float32
    if name not in DTYPES:
        raise ModelError(f"dtype {name!r} is not supported; known: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _check_cuda(place: torch.device) -> None:
    if not torch.cuda.is_available():
        built = f"with CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise ModelError(
            f"device {str(place)!r} was asked for, but there is no CUDA device here "
            f"(torch {torch.__version__}, built {built}); use 'auto' or 'cpu'"
        )
    if place.index is not None and place.index >= torch.cuda.device_count():
        raise ModelError(f"device {str(place)!r} was asked for, but this machine has {torch.cuda.device_count()}")


def _configuration(
    given: AnyConfig | None, parts: Source, checkpoint: Checkpoint, image_size: Size | None, family: Family | None
) -> tuple[VimConfig, str, tuple[str, ...]]:
    """Return the configuration, its origin, and the assumptions. A written configuration overrides an inferred one."""
    if given is not None:
        return _of_family(_as_config(given), "config", family), "given", ()
    unused: tuple[str, ...] = ()
    if parts.config is not None:
        written, library = read_config(parts.config, family)
        if written is not None:
            return _of_family(written, str(parts.config), family), str(parts.config), ()
        unused = (f"config.json is not used: it is a file of {library} that does not describe this architecture",)
    if parts.released and family not in (None, parts.released.family):
        raise ConfigError(f"family {family!r} was asked for, but {parts.released.name} is {parts.released.family!r}")
    try:
        known = parts.released.known if parts.released else None
        hints = Hints.from_args(checkpoint.args, known, parts.weights.name)
        config, assumptions = infer(checkpoint.tensors, hints, image_size, family)
        if image_size is not None:
            check_size(config, image_size)  # `infer` may have used it as the trained size
    except (WeightsError, ConfigError) as error:
        raise type(error)(f"{checkpoint.path}: {error}") from error
    assumptions = (*unused, *assumptions)
    for assumption in assumptions:
        level = logging.WARNING if assumption == UNPUBLISHED else logging.INFO
        log.log(level, "%s: assuming %s", checkpoint.path.name, assumption)
    also = f", and what is known of {parts.released.name}" if parts.released else ""
    return config, f"inferred from the tensors{also}", assumptions


def _as_family(given: str | None) -> Family | None:
    if given is not None and given not in get_args(Family):
        raise ConfigError(f"family {given!r} is not supported; known: {', '.join(get_args(Family))}")
    return cast(Family | None, given)


def _of_family(config: VimConfig, origin: str, family: Family | None) -> VimConfig:
    if family is not None and config.family != family:
        raise ConfigError(f"family {family!r} was asked for, but {origin} says {config.family!r}")
    return config


def _as_size(given: int | Size | None) -> Size | None:
    if given is None:
        return None
    height, width = (given, given) if isinstance(given, int) else given
    return height, width


def _as_config(given: AnyConfig) -> VimConfig:
    if isinstance(given, VimConfig):
        return given
    return VimConfig.from_dict(given) if isinstance(given, Mapping) else VimConfig.read(given)


def _check(checkpoint: Checkpoint, config: VimConfig) -> None:
    """Check names and shapes, and that a RoPE table in the file is the one that the configuration determines."""
    expected = _skeleton(config, reference).state_dict()
    # The configuration determines the table, so a file need not contain it.
    given = {name: tensor for name, tensor in expected.items() if name in BUFFERS} | checkpoint.tensors
    check_fit(checkpoint.path, config, expected, given)
    for name, table in _tables(config).items():
        if name in checkpoint.tensors and not torch.allclose(checkpoint.tensors[name], table, rtol=0, atol=1e-2):
            raise WeightsError(
                f"{checkpoint.path}: {name} is not the table of this configuration "
                f"(rope_pretrained_grid {config.rope_pretrained_grid}, image_size {config.image_size})"
            )


def own_recipe(config: VimConfig) -> Preprocess:
    """Return the preprocessing with which the family evaluates its models, in the mode `reference`."""
    # The references have no recipe for images that are not square; the service refuses such models.
    return Preprocess(size=config.image_size[0], crop_ratio=CROP_RATIOS[config.family])


def _recipe(given: str | Preprocess, file: Path | None, config: VimConfig) -> Preprocess:
    """Return the file's recipe, by default `own_recipe`, with the caller's mode; the size always follows the model."""
    if isinstance(given, Preprocess):
        if config.image_size != (given.size, given.size):
            raise ConfigError(f"the preprocessing makes {given.size} px images, the model takes {config.image_size}")
        return given
    own = own_recipe(config)
    defaults = {"size": own.size, "crop_ratio": own.crop_ratio}
    written = Preprocess.from_dict(defaults | ({} if file is None else read_object(file)))
    return dataclasses.replace(written, size=own.size, mode=cast(Mode, given))


def _domain(path: Path | None, config: VimConfig, recipe: Preprocess, checkpoint: Checkpoint) -> Domain | None:
    """The domain beside the weights; None without one, or if it was made for other weights or another size.

    It is valid for every mode of preprocessing.
    """
    if path is None:
        return None
    made_for, domain = domain_file.read(path)
    if made_for != reference_fingerprint(config, recipe, checkpoint):
        log.warning("%s is ignored: it was made for other weights or another image size", path)
        return None
    return domain


def reference_fingerprint(config: VimConfig, recipe: Preprocess, checkpoint: Checkpoint) -> str:
    """The fingerprint with the preprocessing mode "reference", whatever mode is used."""
    return fingerprint(config, dataclasses.replace(recipe, mode="reference"), checkpoint.tensors)


def _skeleton(config: VimConfig, scan: ScanFn) -> Vim:
    """Return the modules without memory for their parameters."""
    with torch.device("meta"):
        return Vim(config, scan)


def _tables(config: VimConfig) -> dict[str, Tensor]:
    return {f"rope.{name}": table for name, table in Rope(config).state_dict().items()} if config.rope else {}


def _assemble(contents: Contents) -> Vim:
    vim = _skeleton(contents.config, reference)
    vim.load_state_dict(contents.checkpoint.tensors | _tables(contents.config), strict=True, assign=True)
    vim.preprocess, vim.labels = contents.preprocess, contents.labels
    vim.fingerprint, vim.assumptions, vim.domain = contents.fingerprint, contents.assumptions, contents.domain
    return vim.requires_grad_(False).eval()
