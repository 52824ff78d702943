"""What a training run says about a model beside its tensors."""

from __future__ import annotations

from typing import Any

import pytest

from model.loading.hints import Hints
from tests.model.loading.checkpoints import FACTORY


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"model": FACTORY, "input_size": 224}, Hints(FACTORY, 224)),
        ({"model": None, "input_size": "224"}, Hints()),
        ({"epochs": 300}, Hints()),
        ({"input_size": -1}, Hints()),
    ],
)
def test_hints_come_from_the_arguments_of_a_run(args: dict[str, Any], expected: Hints) -> None:
    """Only useful arguments of the right type become hints."""
    assert Hints.from_args(args) == expected


@pytest.mark.parametrize(
    ("name", "token"),
    [
        (FACTORY, "middle"),
        ("vim_base_with_middle_cls_token_div2", "middle"),
        ("vim_small_first_cls", "first"),
        ("vim_tiny_with_cls_token", None),
    ],
)
def test_factory_names_say_where_the_token_is(name: str, token: str | None) -> None:
    """The class token is middle or first if the factory's name says so."""
    assert Hints(name).class_token == token
