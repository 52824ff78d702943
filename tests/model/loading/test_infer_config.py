"""The architecture is inferred from the tensors, and what they do not show is assumed and reported."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from model.backends.reference import scan as reference
from model.config import Family, VimConfig
from model.errors import WeightsError
from model.loading.geometry import Size
from model.loading.hints import Hints
from model.loading.infer_config import UNPUBLISHED, infer
from model.vim import Vim
from tests.golden import SHARED, needs_shared
from tests.model.loading.checkpoints import FACTORY, TINY, rope_state, state

NO_HINTS = Hints()
# Fields that no tensor shows; all others must be inferred exactly.
UNSEEN = ("pool", "divide_out", "rope_residual", "bidirectional_layers", "flip", "norm_epsilon")
REFUSED = {"bimamba_unknown", "slow_path_v2"}


def golden(name: str, key: str) -> dict[str, Any]:
    """An index of the golden data; empty if ../shared is absent (the tests then skip)."""
    path = SHARED / "golden" / name
    found: dict[str, Any] = json.loads(path.read_text())[key] if path.is_file() else {"absent": {}}
    return found


def skeleton(keys_shapes: list[tuple[str, list[int]]]) -> dict[str, Tensor]:
    """Return tensors with names and shapes only."""
    return {name: torch.empty(shape, device="meta") for name, shape in keys_shapes}


def blind(config: VimConfig, rope: bool) -> VimConfig:
    """Return the configuration with every field that tensors do not show set to its assumed value."""
    assumed: dict[str, Any] = {name: getattr(VimConfig(), name) for name in UNSEEN}
    assumed |= {"rope_residual": rope, "divide_out": not rope or config.bimamba != "v2"}
    if config.class_token == "none":
        return config.replace(**(assumed | {"pool": "mean"}))
    one = "first" if rope else "middle"
    return config.replace(**assumed, class_token=one if config.num_class_tokens == 1 else "double")


@needs_shared
@pytest.mark.parametrize("name", sorted(golden("small/index.json", "cases")))
def test_golden_cases_are_inferred(name: str) -> None:
    """Every visible field is inferred from names, shapes and the image size, for every option of the reference."""
    case = golden("small/index.json", "cases")[name]
    kwargs = case["kwargs"]
    if name in REFUSED:  # their tensors are those of other cases
        kwargs = kwargs | {"bimamba_type": "none" if "none" in case["checkpoint"] else "v2", "ssm_cfg": None}
    true = VimConfig.from_reference(**kwargs)

    found, assumptions = infer(skeleton(case["state_dict"]), NO_HINTS, true.image_size)

    assert found == blind(true, true.rope)
    assert len(assumptions) >= 3


@needs_shared
@pytest.mark.parametrize("name", sorted(golden("manifest.json", "models")))
def test_released_models_are_inferred_whole(name: str) -> None:
    """With the family, but without hints or an image size, the released configurations are inferred."""
    model = golden("manifest.json", "models")[name]

    found, _ = infer(skeleton(model["state_dict"]), NO_HINTS, family="vim")

    assert found == VimConfig.from_reference(**model["resolved_kwargs"])


def positions(count: int, patch: int, **changes: Any) -> dict[str, Tensor]:
    """Return the tensors of a model with this number of patch positions."""
    tensors = state(patch_size=patch, stride=patch, image_size=(patch, patch), **changes)
    return tensors | {"pos_embed": torch.zeros(1, count + 1, 16)}


@pytest.mark.parametrize(
    ("count", "patch", "given", "size", "stride"),
    [
        (196, 16, None, (224, 224), 16),
        (729, 16, None, (224, 224), 8),
        (784, 8, None, (224, 224), 8),
        (576, 16, (224, 224), (384, 384), 16),  # fine-tuned at 384, asked for at 224
        (16, 16, None, (64, 64), 16),
        (576, 16, (384, 384), (384, 384), 16),
        (49, 16, (64, 64), (64, 64), 8),
        (25, 16, (64, 64), (64, 64), 12),
        (24, 16, (64, 96), (64, 96), 16),
        (16, 16, (70, 70), (70, 70), 16),
        (196, 16, (384, 384), (224, 224), 16),  # trained at 224, asked for at 384
        (196, 16, (192, 192), (224, 224), 16),  # stride 13 would fit 192 px, but is not used in training
        (729, 16, (384, 384), (224, 224), 8),
    ],
)
def test_stride_and_size_from_positions(count: int, patch: int, given: Size | None, size: Size, stride: int) -> None:
    """Stride follows from the number of positions and a square 224 px input, unless the image size says otherwise."""
    found, _ = infer(positions(count, patch), NO_HINTS, given)

    assert (found.image_size, found.stride) == (size, stride)


@pytest.mark.parametrize(
    ("patch", "size"),
    [(16, size) for size in (240, 256, 272, 288, 304, 320, 336, 384, 448, 480, 496, 512, 560, 576, 672)]
    + [(14, 336), (14, 504), (32, 256), (32, 288), (32, 320), (32, 384), (32, 416), (32, 480), (8, 224), (8, 384)],
)
def test_patches_do_not_overlap_unless_a_published_model_is_so(patch: int, size: int) -> None:
    """Without any hint a square of patches is an image of that many whole patches, not 224 px at an odd stride."""
    found, assumptions = infer(positions((size // patch) ** 2, patch), NO_HINTS)

    assert ((size, size), patch) == (found.image_size, found.stride)
    assert f"stride = {patch}, image_size = {size}x{size} px: {(size // patch) ** 2} patch positions" in assumptions


def test_the_published_fine_stride_is_assumed_and_the_other_reading_named() -> None:
    """For 27x27 positions the stride of vim-tiny-plus is assumed; the assumption also names 432 px without overlap."""
    found, assumptions = infer(positions(729, 16), NO_HINTS)

    assert ((224, 224), 8) == (found.image_size, found.stride)
    assert any("432x432 px at stride 16 would fit as well" in text for text in assumptions)


def shapes(embed_dim: int, depth: int, size: int, stride: int = 16, classes: int = 1000) -> dict[str, Tensor]:
    """The names and shapes of a ViM or VideoMamba with one class token."""
    config = VimConfig(embed_dim=embed_dim, depth=depth, image_size=(size, size), stride=stride, num_classes=classes)
    with torch.device("meta"):
        return dict(Vim(config, reference).state_dict())


@pytest.mark.parametrize("embed_dim", [192, 384, 768])
def test_a_file_that_fits_two_published_models_is_refused(embed_dim: int) -> None:
    """A file with the shapes of ViM and VideoMamba at 224 px is refused: the wrong family gives wrong answers."""
    tensors = shapes(embed_dim, 24, 224)

    with pytest.raises(WeightsError, match=r"vim-\w+ \(class token middle.* videomamba-\w+ .*VIM_MODEL_FAMILY"):
        infer(tensors, NO_HINTS)
    for family, expected in (("vim", ("middle", True)), ("videomamba", ("first", False))):
        for found, assumptions in (
            infer(tensors, NO_HINTS, family=family),  # type: ignore[arg-type]
            infer(tensors, Hints({"vim": "vim_tiny_patch16_224", "videomamba": "videomamba_tiny"}[family])),
        ):
            assert (family, *expected) == (found.family, found.class_token, found.divide_out)
            assert not any(UNPUBLISHED in text for text in assumptions)


@pytest.mark.parametrize(
    ("file", "family"),
    [("vim_t_midclstok_76p1acc.pth", "vim"), ("videomamba_t16_in1k_res224.pth", "videomamba")],
)
def test_a_file_with_a_released_name_tells_the_family(file: str, family: str) -> None:
    """The released files are recognised by their names on disk, too; the assumption says so."""
    found, assumptions = infer(shapes(192, 24, 224), Hints(file=file))

    assert family == found.family
    assert any("the file has the name of the released" in text for text in assumptions)


@pytest.mark.parametrize(
    ("given", "family", "name"),
    [
        ((192, 24, 448), "videomamba", "videomamba-tiny-448"),
        ((384, 24, 576), "videomamba", "videomamba-small-576"),
        ((576, 32, 224), "videomamba", "videomamba-middle"),
        ((192, 24, 224, 8), "vim", "vim-tiny-plus"),
    ],
)
def test_a_shape_that_one_published_model_has_tells_the_family(given: tuple[int, ...], family: str, name: str) -> None:
    """The family is that of the only published model with these shapes, and the assumption names the model."""
    found, assumptions = infer(shapes(*given), NO_HINTS)

    assert (family, family == "videomamba") == (found.family, found.class_token == "first")
    assert f"family = {family}: of the published models only {name} has these shapes" in assumptions


@pytest.mark.parametrize("changes", [{"classes": 10}, {"depth": 12}, {"size": 384}])
def test_other_shapes_are_taken_for_vim_with_a_warning(changes: dict[str, int]) -> None:
    """For shapes of no published model ViM's values are assumed, and the assumption says that this may be wrong."""
    found, assumptions = infer(shapes(**({"embed_dim": 192, "depth": 24, "size": 224} | changes)), NO_HINTS)

    assert ("vim", "middle", True) == (found.family, found.class_token, found.divide_out)
    assert UNPUBLISHED in assumptions


SPREAD: dict[str, Any] = {"family": "mamba-reg", "class_token": "spread", "spread_tokens": 5}


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({}, None),
        ({"neck_reduction": 4}, None),
        ({"norm": "layer", "num_classes": 0, "neck_reduction": 2}, None),
        ({"image_size": (216, 216)}, None),  # 27x27 patches: not 224 px at stride 4
        ({"image_size": (32, 64)}, (32, 64)),
    ],
)
def test_spread_class_tokens_and_their_neck_are_visible(changes: dict[str, Any], given: Size | None) -> None:
    """Mamba-Reg is recognised, with or without a neck; its patches never overlap."""
    expected = TINY.replace(**(SPREAD | changes))

    found, assumptions = infer(state(**(SPREAD | changes)), NO_HINTS, given)

    assert expected == found
    assert "norm_epsilon = 1e-05: as in Mamba-Reg" in assumptions
    assert not any("family" in text for text in assumptions)


@pytest.mark.parametrize(
    ("changes", "family", "only"),
    [
        (SPREAD, "vim", "Mamba-Reg"),
        (SPREAD, "videomamba", "Mamba-Reg"),
        ({}, "mamba-reg", "ViM"),
        ({"class_token": "double"}, "videomamba", "ViM"),
        ({"bimamba": "v1"}, "videomamba", "ViM"),
    ],
)
def test_a_family_without_such_tensors_is_refused(changes: dict[str, Any], family: Family, only: str) -> None:
    """A family whose code cannot have such tensors is refused."""
    with pytest.raises(WeightsError, match=f"family '{family}' was asked for, but only {only}.* has such tensors"):
        infer(state(**changes), NO_HINTS, family=family)


def test_a_name_that_the_tensors_contradict_is_not_used() -> None:
    """A name in the arguments or of the file is ignored if it contradicts the tensors."""
    found, _ = infer(state(**SPREAD), Hints("vim_tiny", file="vim_t_midclstok_76p1acc.pth"))

    assert "mamba-reg" == found.family


def test_a_head_of_one_class_is_said_to_have_a_sigmoid() -> None:
    """For a head of one class sigmoid scores are assumed, because a softmax would always be 1."""
    found, assumptions = infer(state(num_classes=1), NO_HINTS)

    assert "sigmoid" == found.score_function
    assert "scores = sigmoid: the head has one class, of which a softmax is always 1" in assumptions


def test_what_the_image_size_settles_is_no_assumption() -> None:
    """If only one stride fits the given size nothing is assumed; if others fit too they are named."""
    _, certain = infer(positions(16, 16), NO_HINTS, (64, 64))
    _, unsure = infer(positions(25, 16), NO_HINTS, (64, 64))

    assert not any("stride" in text for text in certain)
    assert "stride = 12, image_size = 64x64 px: 25 patch positions; stride 11 or stride 10 or 80x80" in unsure[1]


def test_a_table_that_fits_no_square_needs_the_image_size() -> None:
    """24 positions fit no square and need an image size, because they may be 4x6 or 3x8."""
    with pytest.raises(WeightsError, match="24 patch positions fit no square image: give image_size"):
        infer(positions(24, 16), NO_HINTS)


@pytest.mark.parametrize(("given", "expected"), [(None, (224, 224)), ((48, 64), (48, 64))])
def test_without_positions_the_size_is_free(given: Size | None, expected: Size) -> None:
    """Without a position embedding the stride is the patch size, and any image size is accepted."""
    found, assumptions = infer(state(pos_embed=False), NO_HINTS, given)

    assert (found.image_size, found.stride) == (expected, 8)
    assert "without a position embedding" in assumptions[1]


def test_rope_buffers_mean_the_older_model() -> None:
    """A RoPE table implies class token first, RoPE on the residual, no halving, and the grid of the table."""
    found, assumptions = infer(rope_state(), NO_HINTS)

    expected = TINY.replace(rope=True, class_token="first", rope_residual=True, divide_out=False)
    assert found == expected
    assert "class_token = first: as in the older RoPE model, vim-tiny-73p1" in assumptions


@pytest.mark.parametrize("grid", [7, 14, 24])
def test_the_rope_table_shows_the_grid_it_was_trained_on(grid: int) -> None:
    """The reference's pt_hw_seq_len is recovered from the angles of the table."""
    tensors = rope_state(rope_pretrained_grid=grid)
    halved = {name: tensor.bfloat16().float() for name, tensor in tensors.items()}

    assert infer(tensors, NO_HINTS)[0].rope_pretrained_grid == grid
    assert infer(halved, NO_HINTS)[0].rope_pretrained_grid == grid


@pytest.mark.parametrize("expand", [1, 1.5, 2, 2.3, 0.7])
@pytest.mark.parametrize("width", [16, 40, 44])
def test_expand_gives_the_inner_width_back(expand: float, width: int) -> None:
    """`int(expand * width)` is exact, also where the quotient rounds down."""
    inner = int(expand * width)

    found, _ = infer(state(expand=expand, embed_dim=width), NO_HINTS)

    assert found.d_inner == inner


def test_hints_settle_what_tensors_leave_open() -> None:
    """A name with a middle token and div2 overrides the older model's values, and is given as the reason."""
    found, assumptions = infer(rope_state(), Hints("vim_rope_midclstok_div2"))

    assert (found.class_token, found.divide_out) == ("middle", True)
    assert "class_token = middle: from the model's name in the checkpoint's args" in assumptions


def test_hints_never_override_a_tensor() -> None:
    """A name with middle token, stride 8 and 224 px does not override the tensors."""
    found, _ = infer(state(class_token="none", pool="mean"), Hints(FACTORY, 224))

    assert (found.class_token, found.stride, found.image_size) == ("none", 8, (32, 32))
    assert infer(positions(16, 16), Hints(FACTORY, 224))[0].image_size == (64, 64)


def test_a_hinted_size_beats_the_usual_one() -> None:
    """For a model fine-tuned at 384 px, 24x24 positions are not read as stride 9 at 224 px."""
    assert infer(positions(576, 16), Hints("", 384))[0].image_size == (384, 384)


@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "layers.0.mixer.A_log", "layers.0.mixer.conv1d.weight"])
def test_other_models_are_named_as_such(name: str) -> None:
    """For another architecture the error says which key is missing and which keys exist."""
    tensors = state()
    del tensors[name]

    with pytest.raises(WeightsError, match=r"not a Vision Mamba.*no tensor '.*cls_token"):
        infer(tensors, NO_HINTS)


def test_odd_shapes_are_errors_of_ours() -> None:
    """A tensor with a known name and the wrong number of axes raises WeightsError."""
    with pytest.raises(WeightsError, match=r"layers\.0\.mixer\.A_log has shape \(4,\): expected 2 axes"):
        infer(state() | {"layers.0.mixer.A_log": torch.zeros(4)}, NO_HINTS)
    with pytest.raises(WeightsError, match="8x4 px: only square ones"):
        infer(state() | {"patch_embed.proj.weight": torch.zeros(16, 3, 8, 4)}, NO_HINTS)
