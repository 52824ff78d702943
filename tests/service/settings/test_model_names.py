"""VIM_MODELS: names and sources, and names that a model may not have."""

from __future__ import annotations

import pytest

from service.errors import SettingsError
from service.settings import Settings, allowed, model_names


@pytest.mark.parametrize("name", ["a", "7", "vim-tiny", "mine.v2_b", "Mine", "tensor", "a-tensors", "a" * 64])
def test_names_that_a_model_may_have(name: str) -> None:
    """Letters, digits and three signs, at most 64."""
    assert model_names.is_name(name)


@pytest.mark.parametrize(
    "name", ["", ".a", "..", "-a", "_a", "a/b", "a~b", "a b", "ä", "a\n", "a-tensor", "a-tensor-tensor", "a" * 65]
)
def test_names_that_a_model_may_not_have(name: str) -> None:
    """Other characters, hidden names, the second name of the Open Inference Protocol, and long names."""
    assert not model_names.is_name(name)


def test_a_list_is_read_in_its_order() -> None:
    """Blanks around names and sources are left out; a source may contain every sign but a comma."""
    settings = Settings.load({"VIM_MODELS": " tiny = vim-tiny ,\n mine=/a=b/my model,hub=owner/name@v1:x.pth"})

    assert "tiny=vim-tiny,mine=/a=b/my model,hub=owner/name@v1:x.pth" == settings.models
    assert [("tiny", "vim-tiny"), ("mine", "/a=b/my model"), ("hub", "owner/name@v1:x.pth")] == [
        *model_names.read(settings.models).items()
    ]


@pytest.mark.parametrize(
    "value", ["vim-tiny", "a=", "=b", "a=x,,b=y", "a=x,", "a=x,a=y", "a~1=x", "a-tensor=x", ",".join("abc")]
)
def test_another_list_is_refused(value: str) -> None:
    """Names without sources and the reverse, empty entries, a name given twice, and names that are not allowed."""
    with pytest.raises(SettingsError) as caught:
        Settings.load({"VIM_MODELS": value})

    assert f"VIM_MODELS must be {allowed('models')}, got {value!r}" == str(caught.value)


def test_a_list_has_at_most_64_models() -> None:
    """64 are allowed, 65 are not."""
    entries = [f"m{number}=demo" for number in range(65)]

    assert 64 == len(model_names.read(",".join(entries[:64])))
    with pytest.raises(ValueError):
        model_names.read(",".join(entries))
